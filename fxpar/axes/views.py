"""Links of ops that rearrange their operand: views, splits and concatenations, repeats, padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxpar.axes.apply import piece
from fxpar.axes.call import Call, kept_dims, opaque, whole
from fxpar.axes.factor import Dim, Factor, concatenation, fresh, resolve, size_of
from fxpar.axes.links import Links, Pieces
from fxpar.axes.unify import unify


def reshape(call: Call) -> Links:
    """[a, b] -> [(a b)] and back: the flat sequence of factors stays. Its pieces are cut by `regroup` at the end."""
    (_, dims), shape = call.operands[0], call.shapes[0]
    new = tuple(fresh(size) for size in shape)
    unify(tuple(t for dim in dims for t in dim), tuple(t for dim in new for t in dim))
    ins: list[Sequence[Pieces]] = [kept_dims(dims), *([()] * len(other) for _, other in call.operands[1:])]
    return call.links(ins, [[piece(f"o{i}", dim) for i, dim in enumerate(new)]], kind="reshape")


def permute(call: Call) -> Links:
    """Dims change places."""
    dims = call.operands[0][1]
    # The op itself says how, on a tensor whose dim `i` has size i.
    probe = torch.empty(tuple(range(call.rank)), device="meta")
    order = call.node.target(probe, *call.node.args[1:], **call.node.kwargs).shape  # type: ignore[operator]
    kept = kept_dims(dims)
    return call.links([kept], [[kept[d] for d in order]])


def expand(call: Call) -> Links:
    """Dims of size 1 and new leading dims are broadcast; all others stay."""
    dims, shape = call.operands[0][1], call.shapes[0]
    kept, lead = kept_dims(dims), len(shape) - call.rank
    outs: list[Pieces] = []
    for i, size in enumerate(shape):
        old = i - lead
        outs.append(kept[old] if old >= 0 and size_of(dims[old]) == size else piece(f"n{i}", fresh(size)))
    return call.links([kept], [outs])


def cast(call: Call) -> Links:
    """Another dtype, that of the second operand."""
    ins = kept_dims(call.operands[0][1])
    return call.links([ins, *([()] * len(other) for _, other in call.operands[1:])], [ins])


def unsqueeze(call: Call) -> Links:
    """A dim of size 1 is put in."""
    kept = kept_dims(call.operands[0][1])
    outs = list(kept)
    outs.insert(call.axis(rank=call.rank + 1), ())
    return call.links([kept], [outs])


def squeeze(call: Call) -> Links:
    """Dims of size 1 go."""
    dims = call.operands[0][1]
    gone = [i for i in call.axes() if size_of(dims[i]) == 1] if call.rank else []
    kept = kept_dims(dims)
    return call.links([kept], [[p for i, p in enumerate(kept) if i not in gone]])


def slice_(call: Call) -> Links:
    """A part of a dim; what it is known where several slices tile the dim."""
    dims, at = call.operands[0][1], call.axis()
    part = call.part
    if size_of(dims[at]) == call.shapes[0][at]:
        kept = kept_dims(dims)
        return call.links([kept], [kept])
    ins = kept_dims(dims, skip=() if part is not None else (at,))
    outs = list(ins)
    if part is not None and call.arguments.get("step", 1) != 1:
        major = resolve(part)
        ins[at] = (*piece(f"d{at}", major), *piece(f"!{at}", resolve(dims[at])[len(major) :]))
    if part is not None:
        outs[at] = piece(f"d{at}", part)
    else:
        before = [length for term in dims[at] if isinstance(term, Factor) for length in term.within]
        outs[at] = whole(call.shapes[0][at], at, within=(*before, size_of(dims[at])))
    return call.links([ins], [outs])


def select(call: Call) -> Links:
    """One index of a dim: the dim goes, and is needed whole."""
    ins = kept_dims(call.operands[0][1], skip=(call.axis(),))
    return call.links([ins], [[p for i, p in enumerate(ins) if i != call.axis()]])


def unbind(call: Call) -> Links:
    """Every index of a dim."""
    ins = kept_dims(call.operands[0][1], skip=(call.axis(),))
    out = [p for i, p in enumerate(ins) if i != call.axis()]
    return call.links([ins], [out] * len(call.shapes))


def unfold(call: Call) -> Links:
    """Windows over a dim, which is needed whole; the elements of a window are a new last dim."""
    at = call.axis("dimension")
    ins = kept_dims(call.operands[0][1], skip=(at,))
    shape = call.shapes[0]
    out = [*(whole(shape[i], i) if i == at else p for i, p in enumerate(ins)), whole(shape[-1], call.rank)]
    return call.links([ins], [out])


def split(call: Call) -> Links:
    """A dim becomes the concatenation of the outputs' dims."""
    dims, at = call.operands[0][1], call.axis()
    parts = [fresh(shape[at]) for shape in call.shapes]
    unify(dims[at], concatenation(parts))
    ins = kept_dims(dims)
    outs = [[piece(f"d{at}", part) if i == at else p for i, p in enumerate(ins)] for part in parts]
    return call.links([ins], outs)


def cat(call: Call) -> Links:
    """The outputs' dim is the concatenation of the operands'; empty operands do not count.

    Where no gradient flows it is a new dim instead, of which nothing is learned: ids that were shifted by one are as
    long as the sequence, and must not break it into its first and its other positions. The same holds for activations
    of which most were cut out of a dim of that length: `cat([zeros, x[:, :-1]], 1)`.
    """
    operands = [dims for _, dims in call.operands if len(dims) == len(call.shapes[0])]
    at = call.axis(rank=len(call.shapes[0]))
    for dims in operands[1:]:
        for i, dim in enumerate(dims):
            if i != at:
                unify(operands[0][i], dim)
    joined = concatenation(dims[at] for dims in operands)
    known = call.node.meta.get("grad", True) and not _shifted([dims[at] for dims in operands], joined)
    skip = () if known else (at,)
    ins = [
        kept_dims(dims, skip) if len(dims) == len(call.shapes[0]) else [()] * len(dims)
        for _, dims in call.operands
    ]
    out = list(kept_dims(operands[0]))
    out[at] = piece(f"d{at}", joined) if known else whole(size_of(joined), at)
    return call.links(ins, [out])


def _shifted(parts: Sequence[Dim], joined: Dim) -> bool:
    """Whether more than half of a concatenation are slices of a dim that is as long as the whole concatenation."""
    length = size_of(joined)
    factors = [term for part in parts if len(part) == 1 for term in part if isinstance(term, Factor)]
    return 2 * sum(factor.size for factor in factors if length in factor.within) > length


def glu(call: Call) -> Links:
    """cat[a, b] -> a * sigmoid(b): both halves of a dim are one."""
    dims, at = call.operands[0][1], call.axis()
    half = fresh(call.shapes[0][at])
    unify(dims[at], concatenation((half, half)))
    ins = kept_dims(dims)
    out = [piece(f"d{at}", half) if i == at else p for i, p in enumerate(ins)]
    return call.links([ins], [out], kind="op", linear=False)


def stack(call: Call) -> Links:
    """A new dim over the operands."""
    first = call.operands[0][1]
    for _, dims in call.operands[1:]:
        for a, b in zip(first, dims):
            unify(a, b)
    kept = kept_dims(first)
    out = list(kept)
    at = call.axis(rank=call.rank + 1)
    out.insert(at, whole(call.shapes[0][at], at))
    return call.links([kept] * len(call.operands), [out])


def repeat(call: Call) -> Links:
    """x.repeat: a dim that is repeated k times becomes (k dim)."""
    dims, shape = call.operands[0][1], call.shapes[0]
    kept, lead = kept_dims(dims), len(shape) - call.rank
    outs = []
    for i, size in enumerate(shape):
        old = kept[i - lead] if i >= lead else ()
        length = size_of(dims[i - lead]) if i >= lead else 1
        outs.append((*piece(f"n{i}", fresh(size // max(1, length))), *old))
    return call.links([kept], [outs])


def repeat_interleave(call: Call) -> Links:
    """Each element of a dim is repeated k times: the dim becomes (dim k)."""
    dims = call.operands[0][1]
    kept = kept_dims(dims)
    if call.arguments.get("dim") is None:
        return opaque(call)
    at = call.axis()
    out = list(kept)
    times = call.shapes[0][at] // max(1, size_of(dims[at]))
    out[at] = (*kept[at], *piece(f"n{at}", fresh(times)))
    return call.links([kept], [out])


def pad(call: Call) -> Links:
    """Padded dims are whole, the others stay."""
    dims, amounts = call.operands[0][1], call.arguments["pad"]
    padded = [call.rank - 1 - k // 2 for k, amount in enumerate(amounts) if amount != 0]
    ins = kept_dims(dims, skip=padded)
    out = [whole(call.shapes[0][i], i) if i in padded else p for i, p in enumerate(ins)]
    return call.links([ins], [out], linear=not call.arguments.get("value"))
