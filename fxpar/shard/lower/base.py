"""What a lowering is, and the site that it rewrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import fx

from fxpar.axes.factor import Factor, size_of
from fxpar.axes.links import Links
from fxpar.axes.schema import arguments, op_name
from fxpar.errors import ShardError
from fxpar.mesh import GroupIndex, GroupName, joined
from fxpar.shard.placement import Placement, Shard
from fxpar.shard.split import Split


class Builder(Protocol):
    """What a lowering may ask of the rewrite of the graph."""

    def whole(self, old: fx.Node, consumer: fx.Node) -> fx.Node:
        """The new node that holds a value Invariant over every mesh dim."""

    def call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: fx.Node, val: Any = None
    ) -> fx.Node:
        """Append a call that stands for the old node `like`."""

    def shared(self, key: object, make: Callable[[fx.Graph], fx.Node]) -> fx.Node:
        """A value that depends on nothing, made once at the head of the graph for all that ask with this key."""

    def draw(
        self,
        site: Site,
        target: Any,
        first: tuple[Any, ...],
        rest: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> fx.Node:
        """Append `target(*first, seed, number, coordinates, *rest)`, which draws from the stream of its placement.

        No other random op of the graph has its number; the seed is that of the forward call or, where the value is the
        same in every microbatch, that of the step.
        """


@dataclass(frozen=True)
class Site:
    """One node to be rewritten: its operands converted to what it wants, its splits by mesh dim."""

    builder: Builder
    node: fx.Node
    operands: tuple[fx.Node, ...]
    splits: Mapping[str, Split]
    """The role and factor that each mesh dim splits, outermost mesh dim first."""
    held: Mapping[str, Placement]
    """The placement of the node's output."""
    links: Links
    sizes: Mapping[str, int]
    """The size of every mesh dim that splits anything."""
    timed: frozenset[str]
    """Mesh dims that are steps in time, not ranks: there is no group to talk to."""

    def split_over(self, *roles: str) -> list[str]:
        """The mesh dims that split any of these roles."""
        return [mesh_dim for mesh_dim, split in self.splits.items() if split.role in roles]

    def group_over(self, role: str) -> GroupName:
        """The group whose ranks, in its order, hold equal contiguous shares of the role's dim, which must be split.

        Raises ShardError where the shares are not contiguous: the split factors are not the leading ones.
        """
        mesh_of = {self.splits[m].factor: m for m in self.split_over(role)}
        dim = self.links.first(role)
        leading = dim[: len(mesh_of)]
        if set(leading) != set(mesh_of):
            raise ShardError(
                f"`{op_name(self.node)}` cannot be split on a part of a dim that is not its leading one",
                details=[f"{self.node.meta.get('module') or 'the model'} ({self.node.meta.get('source')})"],
            )
        return GroupName(joined([mesh_of[factor] for factor in leading if isinstance(factor, Factor)]))

    def whole_length(self, role: str) -> int | None:
        """The length of the role's whole dim, if the parts of it are padded; else the parts tell."""
        dim = self.links.first(role)
        uneven = any(self.splits[m].factor.size % self.sizes[m] for m in self.split_over(role))
        return size_of(dim) if uneven else None

    @property
    def coordinates(self) -> list[GroupIndex]:
        """This rank's coordinates on the mesh dims over which the output is split, to seed random ops."""
        return [
            GroupIndex(m)
            for m, state in self.held.items()
            if isinstance(state, Shard) and m not in self.timed
        ]

    def argument(self, name: str) -> Any:
        """An argument of the old node by name."""
        return arguments(self.node)[name]


@dataclass(frozen=True)
class Lowering:
    """A lowering: the ops it serves, what its output is when a role is split, and the rewrite.

    `rewrite` returns None where the op may stay as it is.
    """

    name: str
    ops: tuple[str, ...]
    output: Callable[[fx.Node, str], Placement]
    rewrite: Callable[[Site], fx.Node | None]
    uneven: Callable[[fx.Node, str], bool] = lambda _node, _role: False
    """Whether a role may be split on a factor that does not divide: whether padding is left out."""
    leading: Callable[[str], bool] = lambda _role: False
    """Which roles can be split on the leading factors of their dim only, so that the ranks' shares are contiguous."""
