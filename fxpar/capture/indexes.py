"""Constant indexes that are slices: one row is taken as a slice, so that slices of a dim are seen to tile it.

x[..., [-2], :]  ->  x[..., 4:5, :]    of 6 rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxpar.capture.clean import replace
from fxpar.capture.constants import Constants
from fxpar.capture.node import aten, is_op
from fxpar.capture.program import Program


def slice_constant_indexes(program: Program) -> None:
    """Rewrite such ops of the graph in place; constants that nothing uses any more go. Values stay bit for bit."""
    constants = Constants(program)
    used: set[fx.Node] = set()
    for node in list(program.graph.nodes):
        found = _row(node, constants) if is_op(node, aten.index) else None
        if found is None:
            continue
        dim, row, index = found
        with program.graph.inserting_before(node):
            arguments = (node.args[0], dim, row, row + 1)
            taken = program.graph.create_node("call_function", aten.slice.Tensor, arguments, name="slice")
        taken.meta = dict(node.meta)
        replace(node, taken)
        used.add(index)
    for index in used:
        if index.op == "placeholder" and not index.users:
            del program.tensors[index.meta["name"]]
            program.graph.erase_node(index)


def _row(node: fx.Node, constants: Constants) -> tuple[int, int, fx.Node] | None:
    """(dim, row, the index) of an op that takes one row of one dim by a constant list of one number."""
    source: Any = node.args[0]
    given = [(dim, index) for dim, index in enumerate(node.args[1]) if index is not None]  # type: ignore[arg-type]
    if len(given) != 1 or given[0][1] not in constants:
        return None
    dim, index = given[0]
    value = index.meta["val"]
    if tuple(value.shape) != (1,) or value.dtype in (torch.bool, torch.uint8):
        return None
    try:
        row, size = int(constants.value(index)), int(source.meta["val"].shape[dim])
    except KeyError:
        return None
    return (dim, row % size, index) if -size <= row < size else None
