"""Links of ops whose dims depend on their arguments: views, reductions, slices, concatenations.

Each handler is named by `shape:` in a rule and gets one `Call`. Dims that the op needs whole get a role of meaning
`whole`; everything else is carried from operand to output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxpar.axes.apply import piece
from fxpar.axes.factor import Dim, concatenation, fresh, size_of
from fxpar.axes.links import FREE, WHOLE, Dims, Links, Pieces, Role
from fxpar.axes.oprule import OpRule
from fxpar.axes.unify import unify


@dataclass(frozen=True)
class Call:
    """One call of an op: its arguments by name, its tensors with their dims, the shapes of its outputs."""

    node: fx.Node
    rule: OpRule
    arguments: dict[str, Any]
    operands: tuple[tuple[fx.Node, Dims], ...]
    shapes: tuple[tuple[int, ...], ...]
    part: Dim | None = None
    """The part of a tiled dim that a slice takes."""

    @property
    def rank(self) -> int:
        """The number of dimensions of the first operand."""
        return len(self.operands[0][1])

    def axis(self, name: str = "dim", rank: int | None = None) -> int:
        """An argument that names one dimension, as a non-negative number."""
        return int(self.arguments[name]) % max(1, self.rank if rank is None else rank)

    def axes(self, name: str = "dim") -> tuple[int, ...]:
        """An argument that names several dimensions; all of them where it is absent or empty."""
        value = self.arguments.get(name)
        if value is None or value == []:
            return tuple(range(self.rank))
        values = [value] if isinstance(value, int) else value
        return tuple(int(v) % max(1, self.rank) for v in values)

    def links(
        self,
        ins: Sequence[Sequence[Pieces]],
        outs: Sequence[Sequence[Pieces]],
        *,
        kind: str = "view",
        linear: bool = True,
        meanings: dict[str, str] | None = None,
    ) -> Links:
        """Assemble the links; roles that `meanings` does not name are free, those that start with `!` whole."""
        names = {name for tensor in (*ins, *outs) for pieces in tensor for name, _ in pieces}
        roles = {
            name: Role((meanings or {}).get(name, WHOLE if name.startswith("!") else FREE))
            for name in sorted(names)
        }
        for role in roles.values():
            role.seen = self.rule.seen.get("dim", "") if role.meaning != FREE else ""
        return Links(
            tuple(node for node, _ in self.operands),
            tuple(map(tuple, ins)),
            tuple(map(tuple, outs)),
            roles,
            kind,
            linear,
            rule=self.rule.source,
        )


Handler = Callable[[Call], Links]


def _kept(dims: Dims, skip: Sequence[int] = ()) -> list[Pieces]:
    """Pieces of a tensor whose dim `i` plays the role `d<i>`; skipped dims play `!<i>`, which is whole."""
    return [piece(f"!{i}" if i in skip else f"d{i}", dim) for i, dim in enumerate(dims)]


def _whole(size: int, index: int) -> Pieces:
    return piece(f"!new{index}", fresh(size))


def reshape(call: Call) -> Links:
    """[a, b] -> [(a b)] and back: the flat sequence of factors stays. Its pieces are cut by `regroup` at the end."""
    (_, dims), shape = call.operands[0], call.shapes[0]
    new = tuple(fresh(size) for size in shape)
    unify(tuple(t for dim in dims for t in dim), tuple(t for dim in new for t in dim))
    return call.links([_kept(dims)], [[piece(f"o{i}", dim) for i, dim in enumerate(new)]], kind="reshape")


def permute(call: Call) -> Links:
    """Dims change places."""
    dims = call.operands[0][1]
    order = list(range(call.rank))
    if "dims" in call.arguments:
        order = [int(d) % call.rank for d in call.arguments["dims"]]
    elif "dim0" in call.arguments:
        a, b = call.axis("dim0"), call.axis("dim1")
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    kept = _kept(dims)
    return call.links([kept], [[kept[d] for d in order]])


def expand(call: Call) -> Links:
    """Dims of size 1 and new leading dims are broadcast; all others stay."""
    dims, shape = call.operands[0][1], call.shapes[0]
    kept, lead = _kept(dims), len(shape) - call.rank
    outs: list[Pieces] = []
    for i, size in enumerate(shape):
        old = i - lead
        outs.append(kept[old] if old >= 0 and size_of(dims[old]) == size else piece(f"n{i}", fresh(size)))
    return call.links([kept], [outs])


def unsqueeze(call: Call) -> Links:
    """A dim of size 1 is put in."""
    kept = _kept(call.operands[0][1])
    outs = list(kept)
    outs.insert(call.axis(rank=call.rank + 1), ())
    return call.links([kept], [outs])


def squeeze(call: Call) -> Links:
    """Dims of size 1 go."""
    dims = call.operands[0][1]
    gone = [i for i in call.axes() if size_of(dims[i]) == 1] if call.rank else []
    kept = _kept(dims)
    return call.links([kept], [[p for i, p in enumerate(kept) if i not in gone]])


def slice_(call: Call) -> Links:
    """A part of a dim; what it is known where several slices tile the dim."""
    dims, at = call.operands[0][1], call.axis()
    part = call.part
    if size_of(dims[at]) == call.shapes[0][at]:
        kept = _kept(dims)
        return call.links([kept], [kept])
    ins = _kept(dims, skip=() if part else (at,))
    outs = list(ins)
    outs[at] = piece(f"d{at}", part) if part else _whole(call.shapes[0][at], at)
    return call.links([ins], [outs])


def select(call: Call) -> Links:
    """One index of a dim: the dim goes, and is needed whole."""
    ins = _kept(call.operands[0][1], skip=(call.axis(),))
    return call.links([ins], [[p for i, p in enumerate(ins) if i != call.axis()]])


def unbind(call: Call) -> Links:
    """Every index of a dim."""
    ins = _kept(call.operands[0][1], skip=(call.axis(),))
    out = [p for i, p in enumerate(ins) if i != call.axis()]
    return call.links([ins], [out] * len(call.shapes))


def split(call: Call) -> Links:
    """A dim becomes the concatenation of the outputs' dims."""
    dims, at = call.operands[0][1], call.axis()
    parts = [fresh(shape[at]) for shape in call.shapes]
    unify(dims[at], concatenation(parts))
    ins = _kept(dims)
    outs = [[piece(f"d{at}", part) if i == at else p for i, p in enumerate(ins)] for part in parts]
    return call.links([ins], outs)


def cat(call: Call) -> Links:
    """The outputs' dim is the concatenation of the operands'; empty operands do not count."""
    operands = [dims for _, dims in call.operands if len(dims) == len(call.shapes[0])]
    at = call.axis(rank=len(call.shapes[0]))
    for dims in operands[1:]:
        for i, dim in enumerate(dims):
            if i != at:
                unify(operands[0][i], dim)
    ins = [_kept(dims) if len(dims) == len(call.shapes[0]) else [()] * len(dims) for _, dims in call.operands]
    out = list(_kept(operands[0]))
    out[at] = piece(f"d{at}", concatenation(dims[at] for dims in operands))
    return call.links(ins, [out])


def stack(call: Call) -> Links:
    """A new dim over the operands."""
    first = call.operands[0][1]
    for _, dims in call.operands[1:]:
        for a, b in zip(first, dims):
            unify(a, b)
    kept = _kept(first)
    out = list(kept)
    at = call.axis(rank=call.rank + 1)
    out.insert(at, _whole(call.shapes[0][at], at))
    return call.links([kept] * len(call.operands), [out])


def repeat(call: Call) -> Links:
    """x.repeat: a dim that is repeated k times becomes (k dim)."""
    dims, shape = call.operands[0][1], call.shapes[0]
    kept, lead = _kept(dims), len(shape) - call.rank
    outs = []
    for i, size in enumerate(shape):
        old = kept[i - lead] if i >= lead else ()
        length = size_of(dims[i - lead]) if i >= lead else 1
        outs.append((*piece(f"n{i}", fresh(size // max(1, length))), *old))
    return call.links([kept], [outs])


def repeat_interleave(call: Call) -> Links:
    """Each element of a dim is repeated k times: the dim becomes (dim k)."""
    dims = call.operands[0][1]
    kept = _kept(dims)
    if call.arguments.get("dim") is None:
        return opaque(call)
    at = call.axis()
    out = list(kept)
    times = call.shapes[0][at] // max(1, size_of(dims[at]))
    out[at] = (*kept[at], *piece(f"n{at}", fresh(times)))
    return call.links([kept], [out])


def along(call: Call) -> Links:
    """All dims are kept; those that `dim` names have the rule's meaning (softmax, cumsum, sort, topk)."""
    dims, named = call.operands[0][1], call.axes()
    meanings = {f"d{i}": call.rule.meaning for i in named}
    ins = _kept(dims)
    outs = []
    for shape in call.shapes:
        out = list(ins)
        for i in named:
            if i < len(shape) and shape[i] != size_of(dims[i]):
                meanings[f"d{i}"] = WHOLE
                out[i] = _whole(shape[i], i)
        outs.append(out)
    return call.links([ins], outs, kind="op", linear=call.rule.linear, meanings=meanings)


def reduce(call: Call) -> Links:
    """The dims that `dim` names go, or become 1; splitting them has the rule's meaning."""
    dims, named = call.operands[0][1], call.axes()
    meanings = {f"d{i}": call.rule.meaning for i in named}
    ins = _kept(dims)
    keep = len(call.shapes[0]) == call.rank
    out = [() if i in named else p for i, p in enumerate(ins) if keep or i not in named]
    return call.links([ins], [out] * len(call.shapes), kind="op", linear=call.rule.linear, meanings=meanings)


def index(call: Call) -> Links:
    """x[i, :, j]: indexed dims are whole, the others stay; the indexes' own dims stand in the output."""
    dims = call.operands[0][1]
    indexes = call.arguments["indices"]
    used = [i for i, value in enumerate(indexes) if value is not None]
    base = _kept(dims, skip=used)
    by_node = dict(call.operands[1:])
    width = max(len(by_node[indexes[i]]) for i in used)
    at = used[0] if used == list(range(used[0], used[0] + len(used))) else 0
    middle = [_whole(size, k) for k, size in enumerate(call.shapes[0][at : at + width])]
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
    """gather(x, dim, index): the gathered dim is whole in x; dims where index is as long as x are shared."""
    (_, dims), (_, ids) = call.operands[:2]
    at = call.axis()
    first, second = _kept(dims, skip=(at,)), []
    for i, dim in enumerate(ids):
        if i == at or size_of(dim) != size_of(dims[i]):
            second.append(piece(f"i{i}", dim))
            first[i] = piece(f"!{i}", dims[i])
        else:
            unify(dim, dims[i])
            second.append(first[i])
    return call.links([first, second], [second], kind="op")


def pad(call: Call) -> Links:
    """Padded dims are whole, the others stay."""
    dims, amounts = call.operands[0][1], call.arguments["pad"]
    padded = [call.rank - 1 - k // 2 for k, amount in enumerate(amounts) if amount != 0]
    ins = _kept(dims, skip=padded)
    return call.links(
        [ins], [[_whole(call.shapes[0][i], i) if i in padded else p for i, p in enumerate(ins)]]
    )


def create(call: Call) -> Links:
    """A tensor made from nothing (or from another's dtype only)."""
    outs = [[piece(f"n{i}", fresh(size)) for i, size in enumerate(shape)] for shape in call.shapes]
    ins = [[piece(f"!{i}", dim) for i, dim in enumerate(dims)] for _, dims in call.operands]
    return call.links(ins, outs, kind="create", linear=False)


def opaque(call: Call) -> Links:
    """An op without an equation: it needs all of its operands whole."""
    outs = [[piece(f"!o{i}", fresh(size)) for i, size in enumerate(shape)] for shape in call.shapes]
    ins = [[piece(f"!{i}", dim) for i, dim in enumerate(dims)] for _, dims in call.operands]
    return call.links(ins, outs, kind="opaque", linear=False)


HANDLERS: dict[str, Handler] = {
    "reshape": reshape,
    "permute": permute,
    "expand": expand,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "slice": slice_,
    "select": select,
    "unbind": unbind,
    "split": split,
    "cat": cat,
    "stack": stack,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "along": along,
    "reduce": reduce,
    "index": index,
    "gather": gather,
    "pad": pad,
    "create": create,
    "opaque": opaque,
}
