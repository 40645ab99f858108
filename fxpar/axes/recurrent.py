"""Links of recurrent layers as torch runs them, all layers and all steps in one op: only samples are apart."""

from __future__ import annotations

from fxpar.axes.apply import piece
from fxpar.axes.call import Call, opaque, whole
from fxpar.axes.links import Dims, Links, Pieces
from fxpar.axes.unify import unify


def recurrent(call: Call) -> Links:
    """An input [steps, batch, features], or [batch, steps, features], states [layers, batch, features], and weights."""
    states = call.arguments["hx"]
    count = len(states) if isinstance(states, (list, tuple)) else 1
    if call.rank != 3:
        return opaque(call)
    at = 0 if call.arguments["batch_first"] else 1
    batch = call.operands[0][1][at]
    for _, dims in call.operands[1 : 1 + count]:
        unify(batch, dims[1])

    def samples(dims: Dims, place: int, number: int) -> list[Pieces]:
        return [
            piece("batch", batch) if i == place else piece(f"!{number}.{i}", dim)
            for i, dim in enumerate(dims)
        ]

    ins = [samples(call.operands[0][1], at, 0)]
    ins += [samples(dims, 1, 1 + i) for i, (_, dims) in enumerate(call.operands[1 : 1 + count])]
    weights = call.operands[1 + count :]
    ins += [[piece(f"!w{i}.{j}", dim) for j, dim in enumerate(dims)] for i, (_, dims) in enumerate(weights)]
    outs = []
    for number, shape in enumerate(call.shapes):
        place = 1 if number else at
        outs.append(
            [
                piece("batch", batch) if i == place else whole(size, 3 * number + i)
                for i, size in enumerate(shape)
            ]
        )
    return call.links(ins, outs, kind="op", linear=False)
