"""The census of a model's axes: how often each was found, what it touches, and which mesh sizes divide it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from math import gcd, prod
from typing import Any

import torch
from torch import fx

from fxpar.axes import infer, naming
from fxpar.axes.columns import aligned, numbers, size_text
from fxpar.axes.composite import Composite
from fxpar.axes.factor import Factor, leaves, text
from fxpar.axes.oprule import OpRule
from fxpar.capture.program import Program
from fxpar.errors import ModelError

#: What the plan divides an axis over: mesh dim (`tp?` where an instance may stay whole) -> number of ranks.
Over = Mapping[str, int]


@dataclass(frozen=True)
class AxisRow:
    """One axis of a model."""

    axis: str
    sizes: tuple[int, ...]
    """The distinct sizes of its instances."""
    instances: int
    """The number of factors: dims that have to be split alike count as one."""
    locked: int
    """How many of the instances can never be split."""
    parameters: int
    """The number of parameters that have the axis."""
    bytes: int
    """The bytes of these parameters."""
    divides: tuple[int, ...]
    """The mesh sizes that divide every instance that can be split."""
    rule: str
    """The rules that gave the name, as `rules/axes.yaml:12`."""
    over: Mapping[str, int]
    """What the plan divides it over."""

    @property
    def fits(self) -> bool:
        """Whether every instance divides over all that the plan asks for, but for mesh dims where it need not."""
        return prod(size for name, size in self.over.items() if not name.endswith(("?", "~"))) in self.divides


@dataclass(frozen=True)
class OpRow:
    """An op without an equation: its operands are made whole wherever it is called."""

    op: str
    calls: int
    module: str
    """The module of the first call, and the line of the model's source."""
    source: str


@dataclass(frozen=True)
class TensorRow:
    """A parameter none of whose dims is on an axis."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Census:
    """What was found in a model, in the order of the rules of axes, of the calls and of the parameters."""

    rows: tuple[AxisRow, ...]
    ops: tuple[OpRow, ...]
    """The ops without an equation."""
    nowhere: tuple[TensorRow, ...]
    """The parameters on no axis."""
    named: Mapping[str, tuple[str, ...]]
    """The dims of every parameter, buffer and input in factor notation, by name."""
    ties: Mapping[str, str]

    def dims(self, name: str) -> tuple[str, ...]:
        """Return the dims of a parameter, buffer or input in factor notation: `("(heads depth)", "hidden")`.

        Raises ModelError for a name that the model does not have.
        """
        name = self.ties.get(name, name)
        if name not in self.named:
            near = get_close_matches(name, self.named, n=1)
            details = [f"did you mean `{found}`?" for found in near]
            raise ModelError(f"the model has no tensor `{name}`", details=details)
        return self.named[name]

    def to_json(self) -> str:
        """Return all of it as JSON: `axes`, `ops_without_equation`, `parameters_on_no_axis` and `dims`."""
        data = {
            "axes": [asdict(row) for row in self.rows],
            "ops_without_equation": [asdict(row) for row in self.ops],
            "parameters_on_no_axis": [asdict(row) for row in self.nowhere],
            "dims": self.named,
        }
        return json.dumps(data, indent=2)

    def text(self) -> str:
        """Return the table of axes, and below it what the rules say nothing of."""
        blocks = [_axes_text(self.rows)] if self.rows else ["no axis was found"]
        if self.ops:
            lines = [[row.op, f"{row.calls}x", _where(row)] for row in self.ops]
            blocks.append("ops without an equation (they need their operands whole)\n" + aligned(lines, "  "))
        if self.nowhere:
            lines = [[row.name, str(list(row.shape)), size_text(row.bytes)] for row in self.nowhere]
            blocks.append("parameters on no axis\n" + aligned(lines, "  "))
        return "\n\n".join(blocks)


def census(
    program: Program,
    ops: Mapping[str, OpRule],
    names: Sequence[naming.NamingRule],
    over: Mapping[str, Over] | None = None,
    composites: Sequence[Composite] = (),
) -> Census:
    """Count the axes of a captured program. `over` says what a plan divides each axis over, as ranks by mesh dim."""
    found = infer.infer(program.graph, ops)
    tensors = [n for n in program.graph.find_nodes(op="placeholder") if _is_tensor(n)]
    named = naming.name(found, [n for n in tensors if n.meta["kind"] == "input"], names, composites)
    counted = _Count(found, named, [n for n in tensors if n.meta["kind"] == "parameter"])
    axes = [axis for axis in dict.fromkeys(rule.axis for rule in names) if axis in counted.instances]
    return Census(
        rows=tuple(counted.row(axis, (over or {}).get(axis, {})) for axis in axes),
        ops=tuple(_op_row(op, nodes) for op, nodes in found.unknown.items()),
        nowhere=tuple(counted.nowhere()),
        named={n.meta["name"]: tuple(text(dim, named.word) for dim in found.of(n)) for n in tensors},
        ties=dict(program.ties),
    )


@dataclass(frozen=True)
class _Count:
    """The factors of every axis and the parameters that have them."""

    found: infer.Inference
    naming: naming.Naming
    parameters: Sequence[fx.Node]

    @cached_property
    def instances(self) -> dict[str, list[Factor]]:
        """Every factor that has a name, by axis."""
        instances: dict[str, list[Factor]] = defaultdict(list)
        for factor, rule in self.naming.rules.items():
            if factor.bound is None:
                instances[rule.axis].append(factor)
        return instances

    @cached_property
    def touching(self) -> dict[str, list[fx.Node]]:
        """The parameters of every axis."""
        touching: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.parameters:
            for axis in self.axes_of(node):
                touching[axis].append(node)
        return touching

    def axes_of(self, node: fx.Node) -> Iterable[str]:
        """The axes of one parameter, each once."""
        factors = (factor for dim in self.found.of(node) for factor in leaves(dim))
        return dict.fromkeys(axis for factor in factors if (axis := self.naming.axis(factor)))

    def row(self, axis: str, over: Over) -> AxisRow:
        """The row of one axis."""
        factors = self.instances[axis]
        free = [factor.size for factor in factors if not factor.locked]
        common = gcd(*free) if free else 1
        touching = self.touching[axis]
        places = dict.fromkeys(self.naming.rules[factor].place for factor in factors)
        return AxisRow(
            axis=axis,
            sizes=tuple(sorted({factor.size for factor in factors})),
            instances=len(factors),
            locked=len(factors) - len(free),
            parameters=len(touching),
            bytes=sum(map(_bytes, touching)),
            divides=tuple(n for n in range(1, common + 1) if common % n == 0),
            rule=", ".join(f"{place.file}:{place.line}" for place in places),
            over=dict(over),
        )

    def nowhere(self) -> Iterable[TensorRow]:
        """The parameters that no axis touches."""
        for node in self.parameters:
            if not [*self.axes_of(node)]:
                yield TensorRow(node.meta["name"], tuple(node.meta["val"].shape), _bytes(node))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.Tensor)


def _bytes(node: fx.Node) -> int:
    value: torch.Tensor = node.meta["val"]
    return value.numel() * value.element_size()


def _op_row(op: str, nodes: Sequence[fx.Node]) -> OpRow:
    meta: dict[str, Any] = nodes[0].meta
    return OpRow(op, len(nodes), meta.get("module") or "", meta.get("source") or "")


def _where(row: OpRow) -> str:
    return " ".join([row.module or "the model", *([f"({row.source})"] if row.source else [])])


def _axes_text(rows: Sequence[AxisRow]) -> str:
    split = any(row.over for row in rows)
    head = ["axis", "size", "instances", "parameters", "bytes", "mesh sizes", *["plan"] * split, "rule"]
    lines = [
        [
            row.axis,
            numbers(row.sizes),
            f"{row.instances}" + (f" ({row.locked} locked)" if row.locked else ""),
            str(row.parameters),
            size_text(row.bytes),
            numbers(row.divides),
            *[_over_text(row)] * split,
            row.rule,
        ]
        for row in rows
    ]
    return aligned([head, *lines])


def _over_text(row: AxisRow) -> str:
    words = " ".join(f"{name}={size}" for name, size in row.over.items())
    return words if row.fits else f"{words} does not divide"
