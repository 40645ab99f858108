"""How long an axis may be for the tables in which its positions are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from fxpar.capture.constants import Constants
from fxpar.capture.node import aten, is_op
from fxpar.capture.program import Program
from fxpar.dynamic.fit import Fit


def limit(program: Program, others: Sequence[Program], fit: Fit) -> None:
    """Limit the dynamic axes to what tables allow: `positions.weight` has 64 rows, so that a sequence has at most 64.

    Looked up are ids that depend on no input. Tables for whose ids no one axis accounts are noted as `unbounded`.
    """
    unbounded: set[str] = set()
    programs = [program, *others]
    lookups = [[node for node in each.graph.nodes if is_op(node, aten.embedding)] for each in programs]
    constants = [Constants(each) for each in programs]
    axes = {axis.name: axis for axis in program.dynamic}
    for nodes in zip(*lookups):
        rows = [_rows(node, known) for node, known in zip(nodes, constants)]
        if any(row is None for row in rows) or len(set(rows)) == 1:
            continue
        size = fit.size([int(row) for row in rows if row is not None])
        named = size.polynomial.axes if size is not None else ()
        table: fx.Node = nodes[0].args[0]
        if size is None or len(named) != 1:
            unbounded.add(str(table.meta.get("name", table.name)))
            continue
        axis = axes[named[0]]
        height = int(table.meta["val"].shape[0])
        most = _most(size.polynomial.at, axis.name, height)
        if axis.most is None or most < axis.most:
            reason = (
                f"`{table.meta.get('name', table.name)}` has {height} rows ({nodes[0].meta.get('source')})"
            )
            axes[axis.name] = replace(axis, most=most, reason=reason)
    program.dynamic, program.unbounded = tuple(axes.values()), frozenset(unbounded)


def _rows(node: fx.Node, constants: Constants) -> int | None:
    """How many rows a lookup of constant ids needs; None where they depend on an input or have no value."""
    ids = node.args[1]
    if ids not in constants:
        return None
    try:
        return int(constants.value(ids).max()) + 1  # type: ignore[arg-type]
    except KeyError:
        return None


def _most(rows: object, axis: str, height: int) -> int:
    """The largest size of an axis for which `rows` are at most `height`."""
    low, high = 0, height * 2 + 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if rows({axis: middle}) <= height else (low, middle - 1)  # type: ignore[operator]
    return low
