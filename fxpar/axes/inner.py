"""Calls of `torch.autograd.Function`: what its own forward and backward say about the dims of what goes in and out.

Both are traced as one graph (`capture/joint.py`), over which inference walks as over any other. A factor may then be
split if no op inside needs more than its slice of it: what goes in split comes out split, in the gradients too, and
the gradient of what goes in whole is a sum over the slices. Everything else stays whole.

A Function may read sizes: slices of it are traced as well, and have to be the whole graph with local sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fxpar.axes.apply import dims_of
from fxpar.axes.call import Call
from fxpar.axes.factor import Dim, Factor, Term, leaves, resolve
from fxpar.axes.infer import Inference, regroup, tilings, visit
from fxpar.axes.inside import spread
from fxpar.axes.links import FREE, WHOLE, Dims, Links, Piece, Role
from fxpar.axes.local import localize
from fxpar.axes.oprule import OpRule
from fxpar.axes.runs import cut_size
from fxpar.axes.samecall import written
from fxpar.axes.unify import unify
from fxpar.capture.joint import Joint, Tracer
from fxpar.errors import FxparError


@dataclass
class Inner:
    """The inside of one call: its joint graph, and what inference found there, in the factors of the outer graph."""

    call: fx.Node
    joint: Joint
    found: Inference
    tracer: Tracer

    def agrees(self, cuts: Mapping[Factor, int]) -> bool:
        """Whether the Function does on slices what it does on the whole, with local sizes.

        `cuts` says into how many parts each split factor goes.
        """

        def length(dim: Dim) -> int:
            return cut_size(resolve(dim), cuts)

        def local(node: fx.Node, output: int, dim: int) -> int:
            return length(self.found.dims[node][output][dim])

        shapes = [tuple(length(dim) for dim in self.found.dims[node][0]) for node in self.joint.ins]
        part = self.tracer.trace(self.call, shapes)
        if part is None:
            return False
        calls = {n: localize(n, self.found, local, length) for n in _calls(self.joint)}
        own = {n: (n.target, n.args, dict(n.kwargs)) for n in _calls(part)}

        return written(self.joint, calls, local) == written(part, own)


def inside(call: Call, rules: Mapping[str, OpRule], tracer: Tracer) -> tuple[Links, Inner] | None:
    """Infer the inside of a call; None where it cannot be traced, or is not what the rules of ops say."""
    joint = tracer.trace(call.node)
    if joint is None:
        return None
    found = Inference(tilings=tilings(joint.graph), tracer=tracer)
    found.dims.update({node: (dims,) for node, (_, dims) in zip(joint.ins, call.operands)})
    try:
        _walk(joint, found, rules)
        for node, (_, dims) in zip(joint.in_gradients, call.operands):
            for mine, dim in zip(found.dims[node][0] if node else (), dims):
                unify(mine, dim)
    except (FxparError, ValueError, KeyError):
        return None
    outs = [found.dims[node][0] if node else () for node in joint.outs]
    links = _links(call, [dims for _, dims in call.operands], outs, {})
    return links, Inner(call.node, joint, found, tracer)


def settle(links: Links, inner: Inner) -> bool:
    """Give the call a role for each factor that may be split, once all factors are known; False where there is none."""
    for each in inner.found.links.values():
        if each.kind == "reshape":
            regroup(each)
    sides = [[dims_of(tensor) for tensor in side] for side in (links.ins, links.outs)]
    names = _roles([dim for side in sides for dims in side for dim in dims])
    links.ins, links.outs = (tuple(_pieces(dims, names) for dims in side) for side in sides)
    links.roles = {name: Role(FREE) for name in dict.fromkeys(names.values())}
    for name, role in links.roles.items():
        found = {_meaning(inner, factor) for factor in links.factors(name)}
        role.meaning = found.pop() if len(found) == 1 else WHOLE
    links.kind = "op" if any(role.meaning != WHOLE for role in links.roles.values()) else "opaque"
    return links.kind == "op"


def _walk(joint: Joint, found: Inference, rules: Mapping[str, OpRule]) -> None:
    """Visit every op; the gradient of an output has the output's dims."""
    of = {gradient: out for gradient, out in zip(joint.out_gradients, joint.outs) if gradient}
    for node in _calls(joint):
        for given in node.all_input_nodes:
            if given not in found.dims:
                found.dims[given] = found.dims[of[given]]  # type: ignore[index]
        visit(node, rules, found)
    for gradient, out in of.items():
        found.dims.setdefault(gradient, found.dims[out])  # type: ignore[index]


def _calls(joint: Joint) -> Iterator[fx.Node]:
    return (node for node in joint.graph.nodes if node.op == "call_function")


def _links(call: Call, ins: Sequence[Dims], outs: Sequence[Dims], names: Mapping[Term, str]) -> Links:
    made = call.links([_pieces(dims, names) for dims in ins], [_pieces(dims, names) for dims in outs])
    made.kind, made.linear, made.neutral = "opaque", False, False
    return made


def _pieces(dims: Dims, names: Mapping[Term, str]) -> tuple[tuple[Piece, ...], ...]:
    """The dims of a tensor in pieces, neighbours of one role together; without a role a dim is whole."""
    tensor = []
    for number, dim in enumerate(map(resolve, dims)):
        pieces: list[Piece] = []
        for term in dim:
            role = names.get(term, f"!{number}")
            if pieces and pieces[-1][0] == role:
                pieces[-1] = (role, (*pieces[-1][1], term))
            else:
                pieces.append((role, (term,)))
        tensor.append(tuple(pieces))
    return tuple(tensor)


def _roles(dims: Iterable[Dim]) -> dict[Term, str]:
    """A role for every term; terms with a factor in common have one role."""
    names: dict[Term, str] = {}
    owner: dict[Factor, str] = {}
    for term in dict.fromkeys(term for dim in dims for term in resolve(dim)):
        mine = dict.fromkeys(leaves((term,)))
        met = {owner[factor] for factor in mine if factor in owner}
        role = min(met, default=f"f{len(names)}")
        names[term] = role
        owner.update(dict.fromkeys(mine, role))
        names = {key: role if name in met else name for key, name in names.items()}
        owner = {key: role if name in met else name for key, name in owner.items()}
    return names


def _meaning(inner: Inner, factor: Factor) -> str:
    """What splitting a factor means: free, sum, or whole where the inside does not allow it."""
    meaning = spread(inner.joint, inner.found, factor)
    if meaning == WHOLE:
        return WHOLE
    parts = next(number for number in range(2, factor.size + 1) if factor.size % number == 0)
    return meaning if inner.agrees({factor: parts}) else WHOLE
