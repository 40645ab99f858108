"""Splitting one factor inside a joint graph: which values are slices, the same on every rank, or partial sums."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxpar.axes.factor import Factor, count, leaves, resolve
from fxpar.axes.infer import Inference
from fxpar.axes.links import FREE, SUM, WHOLE, Dims, Links
from fxpar.axes.schema import op_name
from fxpar.capture.joint import Joint

#: How a value is held: the number of the dim that is sliced, or a word.
State = int | str
SAME, PARTIAL = "same", "partial"
#: The same on every rank, and as well a partial sum: nothing but zeros.
ZERO = "zero"
_ZEROS = ("aten.zeros", "aten.zeros_like", "aten.new_zeros")
#: Ops that make a dim along which all numbers are equal.
_UNIFORM = (
    *(f"aten.{name}" for name in ("expand", "broadcast_to", "zeros", "ones", "full")),
    *(f"aten.new_{name}" for name in ("zeros", "ones", "full")),
)


class _NotLocal(Exception):
    """An op needs more than its slices."""


def spread(joint: Joint, found: Inference, factor: Factor) -> str:
    """What splitting the factor in all that goes in means for what comes out: free, sum, or whole if it cannot be.

    free    each output is split, or the same on every rank
    sum     each output is split, or a partial sum

    Either way the gradient of an operand that is split is its slice, and that of one that is whole a partial sum:
    what the placements Shard and Replicate of operands ask for.
    """
    try:
        states = _states(joint, found, factor)
        for node, gradient in zip(joint.ins, joint.in_gradients):
            wanted = (PARTIAL, ZERO) if states[node] == SAME else (states[node],)
            if gradient is not None and states[gradient] not in wanted:
                return WHOLE
    except _NotLocal:
        return WHOLE
    outs = {states[out] for out in joint.outs if out is not None}
    words = {state for state in outs if isinstance(state, str)} - {ZERO}
    return WHOLE if len(words) == 2 else SUM if words == {PARTIAL} else FREE


def _states(joint: Joint, found: Inference, factor: Factor) -> dict[fx.Node, State]:
    states: dict[fx.Node, State] = {}
    for node in joint.graph.nodes:
        if node.op == "placeholder":
            states[node] = _held(found.dims[node][0], factor)
        elif op_name(node) == "operator.getitem":
            states[node] = _taken(states[node.args[0]], found.dims[node][0], factor)
        elif node.op == "call_function":
            states[node] = _made(node, found, states, factor)
    return states


def _taken(whole: State, dims: Dims, factor: Factor) -> State:
    """A part of several outputs: sliced or not like the others of its kind."""
    state = _held(dims, factor)
    return whole if state == SAME and isinstance(whole, str) else state


def _held(dims: Dims, factor: Factor) -> State:
    """The dim that is sliced; the same where the factor does not stand in the tensor."""
    where = [number for number, dim in enumerate(dims) if factor in leaves(resolve(dim))]
    if not where:
        return SAME
    if len(where) > 1 or count(resolve(dims[where[0]]), factor) != 1:
        raise _NotLocal
    return where[0]


def _made(node: fx.Node, found: Inference, states: dict[fx.Node, State], factor: Factor) -> State:
    """How the outputs of one op are held; the first one stands for all."""
    links = found.links[node]
    given = [states[operand] for operand in links.operands]
    held = [_held(dims, factor) for dims in found.dims[node]]
    split = any(isinstance(state, int) for state in given)
    if any(state == PARTIAL for state in given) and not split:
        return _of_sums(links, given)
    if not split:
        zeros = links.linear and set(given) == {ZERO} and held == [SAME]
        return ZERO if zeros else _grown(node, held)
    meaning = _meaning(links, given, factor)
    if meaning == SUM and held == [SAME]:
        return PARTIAL
    if meaning == FREE and all(isinstance(state, int) for state in held):
        return held[0]
    raise _NotLocal


def _of_sums(links: Links, given: Sequence[State]) -> State:
    """Linear ops of one partial sum, and sums of several, are partial sums."""
    sums = set(given) <= {PARTIAL, ZERO} and len(links.outs) == 1
    if sums and (links.linear or (len(given) > 1 and len(links.terms) == len(given) and _alike(links))):
        return PARTIAL
    raise _NotLocal


def _alike(links: Links) -> bool:
    return len({tuple(operand.meta["val"].shape) for operand in links.operands}) == 1


def _grown(node: fx.Node, held: Sequence[State]) -> State:
    """From what is the same everywhere: the same, or sliced where the op makes the dim, with equal numbers along it."""
    packet = str(getattr(node.target, "overloadpacket", node.target))
    if any(isinstance(state, int) for state in held) and packet not in _UNIFORM:
        raise _NotLocal
    if held == [SAME] and packet in _ZEROS:
        return ZERO
    return held[0] if len(held) == 1 else SAME


def _meaning(links: Links, given: Sequence[State], factor: Factor) -> str:
    """The meaning of the one role that the factor plays in all operands that have it. Raises _NotLocal."""
    roles = set()
    for number, state in enumerate(given):
        if state == PARTIAL:
            raise _NotLocal
        if isinstance(state, int):
            names = [name for name, dim in links.ins[number][state] if count(resolve(dim), factor) == 1]
            roles.update(names if len(names) == 1 else ["", "!"])
    role = roles.pop()
    if roles or role not in links.roles or factor not in links.factors(role):
        raise _NotLocal
    meaning = links.roles[role].meaning
    if meaning == SUM and any(given[number] == SAME for number in links.terms):
        raise _NotLocal
    return meaning if meaning in (FREE, SUM) else WHOLE
