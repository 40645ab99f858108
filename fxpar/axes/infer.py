"""Axis inference: walk the graph once, apply each op's rule, and know every dim of every tensor by its factors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxpar.axes import apply as equations
from fxpar.axes.call import Call
from fxpar.axes.factor import Dim, concatenation, fresh, resolve, size_of
from fxpar.axes.interleaved import major, strides
from fxpar.axes.links import Dims, Links, Piece, Pieces, Role, aligned
from fxpar.axes.oprule import OpRule
from fxpar.axes.schema import arguments, op_name, tensor_arguments
from fxpar.axes.shapes import HANDLERS
from fxpar.axes.unify import unify
from fxpar.capture.functions import FunctionCall
from fxpar.capture.joint import Tracer
from fxpar.errors import CaptureError, Place, RuleError

if TYPE_CHECKING:
    from fxpar.axes.inner import Inner

POINTWISE = "torch.Tag.pointwise"
SLICES = ("aten.slice.Tensor", "aten.narrow.default")


@dataclass
class Inference:
    """What the walk found: the dims of every node's outputs, and the links of every call."""

    dims: dict[fx.Node, tuple[Dims, ...]] = field(default_factory=dict)
    links: dict[fx.Node, Links] = field(default_factory=dict)
    unknown: dict[str, list[fx.Node]] = field(default_factory=lambda: defaultdict(list))
    """Calls of ops that have no rule, by op."""
    tilings: dict[fx.Node, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    """Slices that together tile a dim: the sizes of all parts, and which part this one is."""
    tiles: dict[tuple[fx.Node, int], tuple[Dim, ...]] = field(default_factory=dict)
    """The parts of every tiled dim."""
    inner: dict[fx.Node, Inner] = field(default_factory=dict)
    """The inside of each call of a `torch.autograd.Function` that could be traced."""
    tracer: Tracer = field(default_factory=Tracer)
    strides: dict[fx.Node, int] = field(default_factory=dict)
    """Slices that take every n-th element, where the others take all that lies between: the step."""

    def of(self, node: fx.Node) -> Dims:
        """The resolved dims of a node with one output."""
        return tuple(resolve(dim) for dim in self.dims[node][0])


def infer(graph: fx.Graph, rules: Mapping[str, OpRule]) -> Inference:
    """Find the factors of all dims of a captured graph.

    Works on `meta['val']` alone; nothing is run. Source: union-find over dimension variables with refinement.
    """
    from fxpar.axes.inner import settle  # it infers as well

    found = Inference(tilings=tilings(graph), strides=strides(graph))
    for node in graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            sizes = value.shape if isinstance(value, torch.Tensor) else ()
            found.dims[node] = (tuple(fresh(int(size)) for size in sizes),)
        elif node.op == "call_function":
            visit(node, rules, found)
    for links in found.links.values():
        if links.kind == "reshape":
            regroup(links)
    for node, inner in found.inner.items():
        if not settle(found.links[node], inner):
            found.unknown[op_name(node)].append(node)
    return found


def visit(node: fx.Node, rules: Mapping[str, OpRule], found: Inference) -> None:
    """Find the dims and links of one call, from those of the nodes before it."""
    if op_name(node) == "operator.getitem":
        found.dims[node] = (found.dims[node.args[0]][node.args[1]],)  # type: ignore[index]
        return
    shapes = output_shapes(node)
    operands = tuple((n, found.of(n)) for n in _tensor_nodes(node))
    rule = rules.get(op_name(node)) or _pointwise_rule(node)
    links: Links | None = None
    if rule is not None and rule.shape and rule.shape != "opaque":
        part = _tile(node, found)
        part = _every(node, found) if part is None else part
        operands = tuple((n, found.of(n)) for n in _tensor_nodes(node))
        links = HANDLERS[rule.shape](Call(node, rule, arguments(node), operands, shapes, part))
    elif rule is not None and rule.equations:
        links = _by_equation(node, rule, found, shapes)
    elif isinstance(node.target, FunctionCall):
        links = _inside(Call(node, _NO_RULE, {}, operands, shapes), rules, found)
    if links is None:
        found.unknown[op_name(node)].append(node)
        links = HANDLERS["opaque"](Call(node, _NO_RULE, {}, operands, shapes))
    links.linear &= _is_numeric(node)
    links.axes = rule.axes if rule else ()
    _check(node, rule or _NO_RULE, links, shapes)
    found.links[node] = links
    found.dims[node] = tuple(equations.dims_of(out) for out in links.outs)


def _inside(call: Call, rules: Mapping[str, OpRule], found: Inference) -> Links | None:
    """The links of a Function, which are settled when all factors are known."""
    from fxpar.axes.inner import inside  # it infers as well

    traced = inside(call, rules, found.tracer)
    if traced is None:
        return None
    found.inner[call.node] = traced[1]
    return traced[0]


def _is_numeric(node: fx.Node) -> bool:
    """Whether every output has real or complex numbers: rounding to integers is not linear."""
    value = node.meta["val"]
    values = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex()) for v in values)


def _by_equation(
    node: fx.Node, rule: OpRule, found: Inference, shapes: tuple[tuple[int, ...], ...]
) -> Links | None:
    """The links that a rule's equation gives; None for a call whose ranks it does not have."""
    given: list[tuple[fx.Node, Dims] | None] = []
    terms, factors = set(), set()
    for name, value in tensor_arguments(node):
        position = sum(operand is not None for operand in given)
        if value is not None and name in rule.terms:
            terms.add(position)
        if value is not None and name in rule.factors:
            factors.add(position)
        given.append((value, found.of(value)) if value is not None else None)
    links = equations.apply(rule, node, given, shapes)
    if links is not None:
        links.terms, links.products = frozenset(terms), frozenset(factors)
        links.linear = rule.linear and len(links.operands) == 1
        given_as = arguments(node) if rule.terms else {}
        links.numbers = tuple(name for name in rule.terms if isinstance(given_as.get(name), int | float))
    return links


_NO_RULE = OpRule("", Place("no equation", 0), shape="opaque")


def _check(node: fx.Node, rule: OpRule, links: Links, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Raise RuleError where a rule makes outputs of other shapes than the op does."""
    sizes = tuple(tuple(size_of(d) for d in equations.dims_of(out)) for out in links.outs)
    if sizes != shapes:
        what = f"`{rule.op}` makes {_shapes_text(shapes)} here, the rule says {_shapes_text(sizes)}"
        raise RuleError(
            what, place=rule.place, details=[f"{node.name} in {node.meta.get('module') or 'the model'}"]
        )


def _shapes_text(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def output_shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    """The global shapes of a node's tensors, one for a plain output.

    Raises CaptureError where a size depends on the values of a tensor.
    """
    value: Any = node.meta["val"]
    values: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    tensors = [v.shape if isinstance(v, torch.Tensor) else () for v in values]
    if any(isinstance(size, torch.SymInt) for shape in tensors for size in shape):
        raise CaptureError(
            f"`{op_name(node)}` gives a tensor whose size depends on data: {[*map(list, tensors)]}",
            details=[f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})"],
        )
    return tuple(tuple(int(size) for size in shape) for shape in tensors)


def _tensor_nodes(node: fx.Node) -> list[fx.Node]:
    """Every tensor of a call in the order of its arguments, those inside lists too, repeated where repeated."""
    flat: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), lambda n: flat.append(n))
    return flat


def _pointwise_rule(node: fx.Node) -> OpRule | None:
    """The rule of ops that torch itself tags as pointwise."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.pointwise not in node.target.tags:
        return None
    if torch.Tag.nondeterministic_seeded in node.target.tags or len(node.target._schema.returns) != 1:
        return None
    count = len(list(tensor_arguments(node)))
    return OpRule(op_name(node), Place(POINTWISE, 0), (equations.pointwise(count),))


def tilings(graph: fx.Graph) -> dict[fx.Node, tuple[tuple[int, ...], int]]:
    """Slices of one dim that together tile it, without hole or overlap.

    Not those that only move a part of it, or overwrite one.
    """
    slices: dict[tuple[fx.Node, int], dict[tuple[int, int], list[fx.Node]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for node in graph.nodes:
        bounds = slice_bounds(node) if op_name(node) in SLICES else None
        if bounds is not None:
            slices[bounds[0]][bounds[1]].append(node)
    tilings = {}
    for (source, dim), found in slices.items():
        ranges = sorted(found)
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        if len(ranges) > 1 and starts == [0, *ends[:-1]] and ends[-1] == source.meta["val"].shape[dim]:
            sizes = tuple(end - start for start, end in ranges)
            if _rolled(sizes, *found.values()) or _overwritten(sizes, *found.values()):
                continue
            tilings.update({node: (sizes, i) for i, r in enumerate(ranges) for node in found[r]})
    return tilings


def _rolled(sizes: tuple[int, ...], *parts: list[fx.Node]) -> bool:
    """Whether a dim is rolled, `cat([x[1:], x[:1]])`: two parts, one longer, that some concatenation exchanges."""
    if len(sizes) != 2 or sizes[0] == sizes[1]:
        return False
    first, second = sorted(parts, key=lambda nodes: slice_bounds(nodes[0])[1])  # type: ignore[index]
    users = {user for node in first for user in node.users if op_name(user) == "aten.cat.default"}
    orders = [list(user.args[0]) for user in users]  # type: ignore[arg-type]
    return any(len(order) == 2 and order[0] in second and order[1] in first for order in orders)


def _overwritten(sizes: tuple[int, ...], *parts: list[fx.Node]) -> bool:
    """Whether a part of a dim was overwritten, which is no half (or third) of it: a token, not a projection."""
    rest = any(node.meta.get("rest") for nodes in parts for node in nodes)
    return rest and len(set(sizes)) > 1


def slice_bounds(node: fx.Node) -> tuple[tuple[fx.Node, int], tuple[int, int]] | None:
    """((operand, dim), (start, end)) of a slice with step 1, negative bounds counted from the end; else None."""
    given = arguments(node)
    source = given["self"]
    dim = given["dim"] % max(1, source.meta["val"].dim())
    size = int(source.meta["val"].shape[dim])
    if "length" in given:
        given |= {
            "end": given["start"] % max(1, size) + given["length"],
            "start": given["start"] % max(1, size),
        }
    if given.get("step", 1) != 1:
        return None
    start, end, _ = slice(given["start"], given["end"]).indices(size)
    return (source, dim), (start, max(start, end))


def _tile(node: fx.Node, found: Inference) -> Dim | None:
    """The part of a tiled dim that a slice takes; the first slice of a tiling makes the parts."""
    tiling = found.tilings.get(node)
    if tiling is None:
        return None
    sizes, index = tiling
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    dim = arguments(node)["dim"] % len(found.dims[source][0])
    if (source, dim) not in found.tiles:
        found.tiles[source, dim] = tuple(fresh(size) for size in sizes)
        unify(found.dims[source][0][dim], concatenation(found.tiles[source, dim]))
    return found.tiles[source, dim][index]


def _every(node: fx.Node, found: Inference) -> Dim | None:
    """The part of a dim that a slice takes which has every n-th element of it."""
    step = found.strides.get(node)
    if step is None:
        return None
    return major(found.dims[node.args[0]][0][arguments(node)["dim"]], step)  # type: ignore[index]


def regroup(links: Links) -> None:
    """Cut a reshape's pieces by the final factors: what keeps its place in the flat order keeps its role."""
    sides = [
        [resolve(tuple(t for _, d in pieces for t in d)) for pieces in tensor]
        for tensor in (links.ins[0], links.outs[0])
    ]
    flats = [[(d, term) for d, dim in enumerate(dims) for term in dim] for dims in sides]
    names: list[dict[int, str]] = [{}, {}]
    flat_in, flat_out = (tuple(term for _, term in flat) for flat in flats)
    for number, (i, j, _) in enumerate(aligned(flat_in, flat_out)):
        names[0][i] = names[1][j] = f"f{number}"
    rebuilt: list[tuple[Pieces, ...]] = []
    for side, flat, name in zip(sides, flats, names):
        pieces: list[list[Piece]] = [[] for _ in side]
        for position, (d, term) in enumerate(flat):
            pieces[d].append((name.get(position, f"!{position}"), (term,)))
        rebuilt.append(tuple(map(tuple, pieces)))
    links.ins, links.outs, links.kind = (rebuilt[0], *links.ins[1:]), (rebuilt[1],), "view"
    used = {n for side in rebuilt for pieces_ in side for n, _ in pieces_}
    links.roles = {n: Role("whole" if n.startswith("!") else "free") for n in sorted(used)}
