"""Fusing ops of a rank's graph, by the rules of `rules/fusions`.

    pow, mul, add, mul, tanh, add, mul, mul  ->  gelu(x, approximate="tanh")

The last of them becomes the new op, and keeps its place in the model, its dims and its placement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import fx

from fxpar.axes.schema import arguments
from fxpar.shard.fusion import ANY, Call, Fusion, Name, Term

COMMUTATIVE = ("mul", "add")
#: What the names of a rule stand for: nodes, numbers, lists.
Bound = dict[str, Any]


def fuse(graph: fx.Graph, rules: Iterable[Fusion]) -> None:
    """Rewrite the graph in place, each op by the first rule that fits."""
    rules = list(rules)
    for node in reversed(graph.nodes):
        fitting = ((rule, found) for rule in rules if (found := match(rule, node)) is not None)
        for rule, (bound, inner) in islice(fitting, 1):
            _replace(node, rule, bound, inner)


def match(rule: Fusion, node: fx.Node) -> tuple[Bound, set[fx.Node]] | None:
    """What the names of a rule stand for at a node, and the nodes that it is about; None where it does not fit."""
    for bound, nodes in _matches(rule.ops, node, {}, ()):
        sized, inner = _sized(rule, bound), {*nodes}
        if sized is not None and all(n is node or inner.issuperset(n.users) for n in inner):
            return sized, inner
    return None


def _matches(
    term: Term, value: Any, bound: Bound, inner: tuple[fx.Node, ...]
) -> Iterator[tuple[Bound, tuple[fx.Node, ...]]]:
    """Every way in which a value is what a term says: the names, and the nodes of its calls."""
    if isinstance(term, Name):
        if term.text == ANY or term.text not in bound or _same(bound[term.text], value):
            yield (bound if term.text == ANY else {**bound, term.text: value}), inner
    elif isinstance(term, Call):
        if isinstance(value, fx.Node) and _calls(value, term.op):
            yield from _arguments(term, value, bound, (*inner, value))
    elif isinstance(term, tuple):
        if isinstance(value, (list, tuple)) and len(value) == len(term):
            yield from _all(list(zip(term, value)), bound, inner)
    elif not isinstance(value, fx.Node) and _same(term, value):
        yield bound, inner


def _arguments(
    term: Call, node: fx.Node, bound: Bound, inner: tuple[fx.Node, ...]
) -> Iterator[tuple[Bound, tuple[fx.Node, ...]]]:
    given = arguments(node)
    names = list(given)
    wanted: dict[str, Term] = {**dict(zip(names, term.args)), **term.kwargs}
    schema = {argument.name: argument for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    if len(term.args) > len(names) or not wanted.keys() <= given.keys():
        return
    if any(not _same(given[name], schema[name].default_value) for name in names if name not in wanted):
        return
    pairs = [(part, given[name]) for name, part in wanted.items()]
    yield from _all(pairs, bound, inner)
    if term.op in COMMUTATIVE and len(pairs) == 2:
        yield from _all([(pairs[0][0], pairs[1][1]), (pairs[1][0], pairs[0][1])], bound, inner)


def _all(
    pairs: list[tuple[Term, Any]], bound: Bound, inner: tuple[fx.Node, ...]
) -> Iterator[tuple[Bound, tuple[fx.Node, ...]]]:
    if not pairs:
        yield bound, inner
        return
    for first, nodes in _matches(*pairs[0], bound, inner):
        yield from _all(pairs[1:], first, nodes)


def _sized(rule: Fusion, bound: Bound) -> Bound | None:
    """The names with those of sizes, or None where shapes or dtypes are others, or a number is a tensor."""
    for name, dims in rule.shapes.items():
        value = bound[name].meta.get("val") if isinstance(bound[name], fx.Node) else None
        if not isinstance(value, torch.Tensor) or (rule.dtypes and value.dtype not in rule.dtypes):
            return None
        sizes = list(value.shape)
        if dims[0] == "...":
            dims, sizes = dims[1:], sizes[len(sizes) - len(dims) + 1 :]
        if len(dims) != len(sizes) or any(bound.get(d, size) != size for d, size in zip(dims, sizes)):
            return None
        bound = {**bound, **dict(zip(dims, sizes))}
        if len(set(zip(dims, sizes))) != len(set(dims)):
            return None
    numbers = (value for name, value in bound.items() if name not in rule.shapes)
    return None if any(isinstance(value, fx.Node) for value in numbers) else bound


def _replace(node: fx.Node, rule: Fusion, bound: Mapping[str, Any], inner: set[fx.Node]) -> None:
    """Let the last of the nodes be the new op: whoever knows this node still finds it."""
    node.target = rule.target
    node.args = tuple(_made(part, bound) for part in rule.into.args)
    node.kwargs = {name: _made(part, bound) for name, part in rule.into.kwargs.items()}
    for old in sorted(inner - {node}, reverse=True):
        node.graph.erase_node(old)


def _made(term: Term, bound: Mapping[str, Any]) -> Any:
    if isinstance(term, tuple):
        return [_made(part, bound) for part in term]
    return bound[term.text] if isinstance(term, Name) else term


def _calls(node: fx.Node, op: str) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name == f"aten::{op}"


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal; a number and a bool never are."""
    if isinstance(one, fx.Node) or isinstance(other, fx.Node):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
