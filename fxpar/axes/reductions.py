"""Links of ops that reduce dims, or compute along them."""

from __future__ import annotations

from fxpar.axes.apply import piece
from fxpar.axes.call import Call, kept_dims, opaque, whole
from fxpar.axes.factor import Dim, size_of
from fxpar.axes.links import FREE, SUM, WHOLE, Links, Pieces
from fxpar.axes.unify import unify


def along(call: Call) -> Links:
    """All dims are kept; those that `dim` names have the rule's meaning (softmax, cumsum, sort, topk)."""
    if len(call.operands) > 1:
        return opaque(call)
    dims, named = call.operands[0][1], call.axes()
    meanings = {f"d{i}": call.rule.meaning for i in named}
    ins = kept_dims(dims)
    outs = []
    for shape in call.shapes:
        out = list(ins)
        for i in named:
            if i < len(shape) and shape[i] != size_of(dims[i]):
                meanings[f"d{i}"] = WHOLE
                out[i] = whole(shape[i], i)
        outs.append(out)
    return call.links([ins], outs, kind="op", linear=call.rule.linear, meanings=meanings)


def reduce(call: Call) -> Links:
    """The dims that `dim` names go, or become 1; splitting them has the rule's meaning."""
    dims, named = call.operands[0][1], call.axes()
    meanings = {f"d{i}": call.rule.meaning for i in named}
    ins = kept_dims(dims)
    keep = len(call.shapes[0]) == call.rank
    out = [() if i in named else p for i, p in enumerate(ins) if keep or i not in named]
    return call.links([ins], [out] * len(call.shapes), kind="op", linear=call.rule.linear, meanings=meanings)


def compare(call: Call) -> Links:
    """Tensors that are broadcast against each other; the dim that `dim` names, else the last one, goes or becomes 1."""
    ins, roles = _broadcast(call)
    named = call.arguments.get("dim", -1) % max(1, len(roles))
    keep = len(call.shapes[0]) == len(roles)
    out = [piece(f"d{i}", dim) if i != named else () for i, dim in enumerate(roles) if keep or i != named]
    return call.links(ins, [out], kind="op", linear=False, meanings={f"d{named}": call.rule.meaning})


def _broadcast(call: Call) -> tuple[list[list[Pieces]], list[Dim]]:
    """The dims of all operands together, aligned at the right, and the pieces that each operand has of them."""
    rank = max(len(dims) for _, dims in call.operands)
    roles: list[Dim] = [()] * rank
    for _, dims in call.operands:
        for i, dim in enumerate(dims, rank - len(dims)):
            if roles[i] and size_of(dim) != 1:
                unify(roles[i], dim)
            roles[i] = roles[i] or dim
    ins = [
        [
            piece(f"d{i}", roles[i]) if size_of(dim) != 1 else ()
            for i, dim in enumerate(dims, rank - len(dims))
        ]
        for _, dims in call.operands
    ]
    return ins, roles


def loss(call: Call) -> Links:
    """A loss of each element, then none of them, their mean (which has the rule's meaning) or their sum."""
    meaning = (FREE, call.rule.meaning, SUM)[call.arguments["reduction"]]
    ins, roles = _broadcast(call)
    out = [piece(f"d{i}", dim) for i, dim in enumerate(roles)] if call.shapes[0] else []
    meanings = {f"d{i}": meaning for i in range(len(roles))}
    links = call.links(ins, [out], kind="op", linear=False, meanings=meanings)
    links.neutral = False
    return links


def weight_norm(call: Call) -> Links:
    """v * g / norm(v): the norm is over all dims of v but one."""
    (_, dims), (_, gains) = call.operands
    if call.arguments["dim"] < 0:
        return opaque(call)
    at = call.axis()
    unify(dims[at], gains[at])
    ins = kept_dims(dims, skip=[i for i in range(call.rank) if i != at])
    second = [p if i == at else () for i, p in enumerate(ins)]
    return call.links([ins, second], [ins], kind="op", linear=False)
