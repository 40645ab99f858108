"""Links of ops that read or write where integer tensors say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxpar.axes.apply import piece
from fxpar.axes.call import Call, kept_dims, opaque, whole
from fxpar.axes.factor import Dim, fresh, size_of
from fxpar.axes.links import Dims, Links, Pieces
from fxpar.axes.unify import unify


def index(call: Call) -> Links:
    """x[i, :, j]: indexed dims are whole, the others stay; the indexes' own dims stand in the output."""
    dims = call.operands[0][1]
    indexes = call.arguments["indices"]
    if _masks(indexes):
        return opaque(call)
    used = [i for i, value in enumerate(indexes) if value is not None]
    base = kept_dims(dims, skip=used)
    by_node = dict(call.operands[1:])
    width = max(len(by_node[indexes[i]]) for i in used)
    at = used[0] if used == list(range(used[0], used[0] + len(used))) else 0
    middle = [whole(size, k) for k, size in enumerate(call.shapes[0][at : at + width])]
    ins: list[Sequence[Pieces]] = [base]
    for _, tensor in call.operands[1:]:
        lead, pieces = width - len(tensor), []
        for k, dim in enumerate(tensor):
            if size_of(dim) == call.shapes[0][at + lead + k] and size_of(dim) != 1:
                if middle[lead + k][0][0].startswith("!"):
                    middle[lead + k] = piece(f"i{lead + k}", dim)
                else:
                    unify(middle[lead + k][0][1], dim)
                pieces.append(piece(f"i{lead + k}", dim))
            else:
                pieces.append(())
        ins.append(pieces)
    rest = [p for i, p in enumerate(base) if i not in used]
    return call.links(ins, [[*rest[:at], *middle, *rest[at:]]], kind="op")


def gather(call: Call) -> Links:
    """gather(x, dim, index): x has the gathered dim alone; dims where index is as long as x are shared.

    Of a dim where it is shorter, the first rows of x are taken. Splitting the gathered dim has the rule's meaning.
    """
    (_, dims), (_, ids) = call.operands[:2]
    at = call.axis()
    first, second = kept_dims(dims), []
    if dims:
        first[at] = piece("rows", dims[at])
    for i, dim in enumerate(ids):
        if i == at:
            second.append(piece("i", dim))
        elif size_of(dim) != size_of(dims[i]):
            second.append(piece(f"!i{i}", dim))
            first[i] = piece(f"!{i}", dims[i])
        else:
            unify(dim, dims[i])
            second.append(first[i])
    return call.links([first, second], [second], kind="op", meanings={"rows": call.rule.meaning})


def take_along(call: Call) -> Links:
    """take_along_dim(x, index, dim) where it is a gather: all other dims of the index are as long as those of x."""
    (_, dims), (_, ids) = call.operands[:2]
    if call.arguments["dim"] is None or len(ids) != len(dims):
        return opaque(call)
    others = [i for i in range(call.rank) if i != call.axis()]
    return gather(call) if all(size_of(ids[i]) == size_of(dims[i]) for i in others) else opaque(call)


def one_hot(call: Call) -> Links:
    """A last dim of classes, new; splitting it has the rule's meaning."""
    first = kept_dims(call.operands[0][1])
    classes = piece("classes", fresh(call.shapes[0][-1]))
    meanings = {"classes": call.rule.meaning}
    return call.links([first], [[*first, classes]], kind="op", linear=False, meanings=meanings)


def index_put(call: Call) -> Links:
    """x[i, :, j] = v: indexed dims are whole, the others are shared by x and v."""
    dims, indexes = call.operands[0][1], call.arguments["indices"]
    if _masks(indexes):
        return opaque(call)
    used = [i for i, value in enumerate(indexes) if value is not None]
    base = kept_dims(dims, skip=used)
    *tensors, (_, values) = call.operands[1:]
    width = max(len(tensor) for _, tensor in tensors)
    at = used[0] if used == list(range(used[0], used[0] + len(used))) else 0
    rest = [i for i in range(call.rank) if i not in used]
    targets = [*rest[:at], *([None] * width), *rest[at:]]
    third = [
        _shared(dims, target, dim, k)
        for k, (target, dim) in enumerate(zip(targets[-len(values) or len(targets) :], values))
    ]
    ins = [base, *([piece(f"!i{k}", d) for k, d in enumerate(tensor)] for _, tensor in tensors), third]
    return call.links(ins, [base], kind="op", linear=False)


def _shared(dims: Dims, target: int | None, dim: Dim, number: int) -> Pieces:
    """A dim of an operand that goes with dim `target` of the first one; whole if there is none, broadcast at size 1."""
    if target is None:
        return piece(f"!v{number}", dim)
    if size_of(dim) == 1:
        return ()
    unify(dims[target], dim)
    return piece(f"d{target}", dims[target])


def _masks(indexes: Sequence[fx.Node | None]) -> bool:
    return any(node is not None and node.meta["val"].dtype in (torch.bool, torch.uint8) for node in indexes)


def index_select(call: Call) -> Links:
    """Rows by number: the dim is whole, and in the output it is that of the index."""
    (_, dims), (_, ids) = call.operands
    at = call.axis()
    first = kept_dims(dims, skip=(at,))
    second = piece("i", ids[0]) if ids else ()
    return call.links(
        [first, [second] * len(ids)], [[second if i == at else p for i, p in enumerate(first)]], kind="op"
    )


def index_add(call: Call) -> Links:
    """Rows added, copied or filled by number: the dim is whole, the others are shared by the target and the rows."""
    (_, dims), (_, ids), *rows = call.operands
    at = call.axis()
    base = kept_dims(dims, skip=(at,))
    ins = [base, [piece("!i", dim) for dim in ids]]
    ins += [[_shared(dims, None if i == at else i, dim, i) for i, dim in enumerate(row)] for _, row in rows]
    return call.links(ins, [base], kind="op", linear=call.rule.linear)


def scatter(call: Call) -> Links:
    """scatter(x, dim, index, source): the dim is whole, and so is every dim of which the index does not cover all."""
    (_, dims), *others = call.operands
    at = call.axis()
    covered = [
        all(size_of(other[i]) == size_of(dim) for _, other in others if other) for i, dim in enumerate(dims)
    ]
    base = kept_dims(dims, skip=[i for i in range(call.rank) if i == at or not covered[i]])
    ins = [
        base,
        *(
            [_beside(dims, i, dim, i != at and covered[i]) for i, dim in enumerate(other)]
            for _, other in others
        ),
    ]
    return call.links(ins, [base], kind="op", linear=call.rule.linear)


def _beside(dims: Dims, target: int, dim: Dim, shared: bool) -> Pieces:
    return _shared(dims, target, dim, target) if shared else piece(f"!v{target}", dim)


def slice_scatter(call: Call) -> Links:
    """A slice is overwritten: its dim is whole, the others are shared by the target and the source."""
    (_, dims), (_, source) = call.operands
    at = call.axis()
    base = kept_dims(dims, skip=(at,))
    second = [_shared(dims, None if i == at else i, dim, i) for i, dim in enumerate(source)]
    return call.links([base, second], [base], kind="op")


def select_scatter(call: Call) -> Links:
    """One index is overwritten: its dim is whole, the others are shared by the target and the source."""
    (_, dims), (_, source) = call.operands
    rest = [i for i in range(call.rank) if i != call.axis()]
    base = kept_dims(dims, skip=(call.axis(),))
    second = [_shared(dims, target, dim, target) for target, dim in zip(rest, source)]
    return call.links([base, second], [base], kind="op")
