"""The handlers that rules name in `shape:`, for ops whose dims depend on their arguments.

Each gets one `Call`. Dims that the op needs whole get a role of meaning `whole`, everything else is carried from
operand to output.
"""

from __future__ import annotations

from fxpar.axes import lookups, reductions, views
from fxpar.axes.apply import piece
from fxpar.axes.call import Call, Handler, opaque
from fxpar.axes.einsum import einsum
from fxpar.axes.factor import fresh
from fxpar.axes.links import Links
from fxpar.axes.recurrent import recurrent


def create(call: Call) -> Links:
    """A tensor made from nothing (or from another's dtype only)."""
    outs = [[piece(f"n{i}", fresh(size)) for i, size in enumerate(shape)] for shape in call.shapes]
    ins = [[piece(f"!{i}", dim) for i, dim in enumerate(dims)] for _, dims in call.operands]
    return call.links(ins, outs, kind="create", linear=False)


HANDLERS: dict[str, Handler] = {
    "reshape": views.reshape,
    "permute": views.permute,
    "expand": views.expand,
    "cast": views.cast,
    "unsqueeze": views.unsqueeze,
    "squeeze": views.squeeze,
    "slice": views.slice_,
    "select": views.select,
    "unbind": views.unbind,
    "unfold": views.unfold,
    "split": views.split,
    "cat": views.cat,
    "stack": views.stack,
    "glu": views.glu,
    "repeat": views.repeat,
    "repeat_interleave": views.repeat_interleave,
    "pad": views.pad,
    "along": reductions.along,
    "reduce": reductions.reduce,
    "loss": reductions.loss,
    "compare": reductions.compare,
    "weight_norm": reductions.weight_norm,
    "recurrent": recurrent,
    "einsum": einsum,
    "index": lookups.index,
    "one_hot": lookups.one_hot,
    "index_put": lookups.index_put,
    "index_select": lookups.index_select,
    "index_add": lookups.index_add,
    "gather": lookups.gather,
    "take_along": lookups.take_along,
    "scatter": lookups.scatter,
    "slice_scatter": lookups.slice_scatter,
    "select_scatter": lookups.select_scatter,
    "create": create,
    "whole": opaque,
    "opaque": opaque,
}
