"""Groups of ranks: what a collective runs over, found by a name that fits into a graph.

An operator can only take a string for its group. So each rank registers its groups under names, and `Groups` gives the
name of this rank's group for a kind of group: a mesh dim (`tp`), several (`dp+cp`), or some coordinates of one
(`pp[0,3]`, the stages that share a tied weight).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, product
from typing import Any

import torch

from fxpar.errors import RankError
from fxpar.mesh import JOIN, Mesh, joined
from fxpar.runtime.counter import Counter
from fxpar.runtime.transport import Transport

_registered: dict[str, Group] = {}
_serial = count()
_part = re.compile(r"(\w+)(?:\[(\d+(?:,\d+)*)\])?")


class Group(ABC):
    """One group of ranks as one of them sees it. Nothing here has a gradient; results are new tensors.

    A group of one rank never communicates.
    """

    def __init__(self, kind: str, ranks: Sequence[int], rank: int, counter: Counter) -> None:
        self.name = ""
        self.kind = kind
        self.ranks = tuple(ranks)
        self.size = len(self.ranks)
        self.index = self.ranks.index(rank)
        self.counter = counter

    def all_reduce(self, x: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """The sum (or `max`) over the ranks, the same on each."""
        if self.size == 1:
            return x.clone(memory_format=torch.contiguous_format)
        self.counter.record("all_reduce", self.kind, x, self.size)
        return self._all_reduce(x.contiguous(), op)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, stacked along a new first dimension."""
        if self.size == 1:
            return x.clone(memory_format=torch.contiguous_format).unsqueeze(0)
        self.counter.record_gather(self.kind, x, self.size)
        return self._all_gather(x.contiguous())

    def reduce_scatter(self, stacked: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, of which each keeps its entry of the first dimension."""
        if self.size == 1:
            return stacked.clone(memory_format=torch.contiguous_format).squeeze(0)
        self.counter.record("reduce_scatter", self.kind, stacked, self.size)
        return self._reduce_scatter(stacked.contiguous())

    def all_to_all(self, stacked: torch.Tensor) -> torch.Tensor:
        """Send entry i of the first dimension to rank i; entry i of the result is what rank i sent."""
        if self.size == 1:
            return stacked.clone(memory_format=torch.contiguous_format)
        self.counter.record("all_to_all", self.kind, stacked, self.size)
        return self._all_to_all(stacked.contiguous())

    def close(self) -> None:  # noqa: B027 - most groups own nothing
        """Give back what the group owns."""

    @abstractmethod
    def _all_reduce(self, x: torch.Tensor, op: str, /) -> torch.Tensor: ...

    @abstractmethod
    def _all_gather(self, x: torch.Tensor, /) -> torch.Tensor: ...

    @abstractmethod
    def _reduce_scatter(self, stacked: torch.Tensor, /) -> torch.Tensor: ...

    @abstractmethod
    def _all_to_all(self, stacked: torch.Tensor, /) -> torch.Tensor: ...


def find(name: str) -> Group:
    """The group registered under a name. Raises RankError if there is none."""
    group = _registered.get(name)
    if group is None:
        raise RankError(
            f"no group is registered as `{name}`",
            details=["pass the name that `Groups` gives for the kind of group (groups.tp, groups['dp+cp']),",
                     "and keep that object open while its groups are in use"],
        )  # fmt: skip
    return group


class Groups:
    """The groups of one rank. `groups.tp`, `groups.dp_cp` or `groups["dp+cp"]` is the registered name of its group.

    Names are given to the operators of this package. `kinds` are made at once; with `lazy` any other kind is made when
    it is first asked for, which only groups that need no agreement of the ranks allow.
    """

    def __init__(
        self,
        mesh: Mesh,
        rank: int,
        make: Callable[[str], Group],
        *,
        kinds: Iterable[str] = (),
        lazy: bool = False,
        counter: Counter | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.mesh = mesh
        self.rank = rank
        self.coordinate = mesh.coordinate(rank)
        self.counter = counter if counter is not None else Counter()
        self._transport = transport
        self._serial = next(_serial)
        self._make, self._lazy = make, lazy
        self._groups: dict[str, Group] = {}
        for kind in kinds:
            if kind not in self._groups and members(mesh, rank, kind):
                self._add(kind)

    @property
    def transport(self) -> Transport:
        """What sends tensors to single ranks. Raises RankError where there are no peers."""
        if self._transport is None:
            raise RankError(f"rank {self.rank} runs alone: it has nobody to send to")
        return self._transport

    @property
    def world(self) -> str:
        """The name of the group of all ranks."""
        return self[joined(self.mesh.dims)]

    def group(self, kind: str) -> Group:
        """This rank's group of a kind. Raises RankError if it has none, or the kind was not asked for."""
        if kind not in self._groups:
            if not self._lazy or not members(self.mesh, self.rank, kind):
                raise RankError(
                    f"rank {self.rank} has no group `{kind}`", details=[f"it has {', '.join(self._groups)}"]
                )
            self._add(kind)
        return self._groups[kind]

    def index(self, kind: str) -> int:
        """This rank's position in its group of a kind."""
        return self.group(kind).index

    def size(self, kind: str) -> int:
        """The number of ranks in this rank's group of a kind."""
        return self.group(kind).size

    def close(self) -> None:
        """Unregister all groups and give back what they own."""
        for group in self._groups.values():
            _registered.pop(group.name, None)
            group.close()
        self._groups.clear()
        self._lazy = False

    def __deepcopy__(self, _memo: dict[int, Any]) -> Groups:
        """Itself: a copied module meets the same ranks."""
        return self

    def __getitem__(self, kind: str) -> str:
        return self.group(kind).name

    def __contains__(self, kind: str) -> bool:
        return kind in self._groups or (self._lazy and bool(members(self.mesh, self.rank, kind)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __getattr__(self, attribute: str) -> str:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        try:
            return self[attribute.replace("_", JOIN)]
        except RankError as error:
            raise AttributeError(str(error)) from error

    def _add(self, kind: str) -> None:
        group = self._make(kind)
        group.name = f"{kind}@{self._serial}"
        _registered[group.name] = self._groups[kind] = group
        if kind.replace(JOIN, "_").isidentifier():
            # A plain attribute, so that a compiler sees a constant.
            self.__dict__[kind.replace(JOIN, "_")] = group.name


class _Lone(Group):
    """A group whose other ranks do not exist: it has a size and a position and cannot exchange anything."""

    def _refuse(self, *_: Any) -> Any:
        raise RankError(
            f"group `{self.kind}` has no other ranks here: run under fake tensors, or simulate them"
        )

    _all_reduce = _all_gather = _reduce_scatter = _all_to_all = _refuse


def alone(mesh: Mesh, rank: int = 0) -> Groups:
    """The groups of one rank without its peers: enough to run a module of that rank under fake tensors."""
    counter = Counter()
    return Groups(
        mesh,
        rank,
        lambda kind: _Lone(kind, members(mesh, rank, kind), rank, counter),
        lazy=True,
        counter=counter,
    )


def members(mesh: Mesh, rank: int, kind: str) -> tuple[int, ...]:
    """The ranks of `rank`'s group of a kind, in the group's order; empty if `rank` is in no such group.

    A kind joins mesh dims by `+`; `pp[0,3]` takes only these coordinates. An absent mesh dim counts as one of size 1.
    """
    position = mesh.coordinate(rank)
    choices: dict[str, Sequence[int]] = {}
    for part in kind.split(JOIN):
        match = _part.fullmatch(part)
        if match is None:
            raise ValueError(f"`{kind}` is no kind of group: write `tp`, `dp+cp` or `pp[0,3]`")
        dim, chosen = match.groups()
        if dim in mesh.sizes:
            choices[dim] = [int(c) for c in chosen.split(",")] if chosen else range(mesh.sizes[dim])
    if any(position[dim] not in chosen for dim, chosen in choices.items()):
        return ()
    return tuple(mesh.rank(position | dict(zip(choices, spot))) for spot in product(*choices.values()))


def partition(mesh: Mesh, kind: str) -> list[tuple[int, ...]]:
    """Every distinct group of a kind, in the order of their first rank in the mesh."""
    found = (members(mesh, rank, kind) for rank in range(mesh.world))
    return [group for group in dict.fromkeys(found) if group]
