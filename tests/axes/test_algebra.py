"""The notation is element-exact: what it says of random chains of views holds for every element."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from operator import getitem
from typing import Any

from graphs import Graph, aten
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from fxpar.axes.factor import resolve, size_of
from fxpar.axes.infer import output_shapes
from fxpar.axes.parts import Parts

Draw = Callable[[st.SearchStrategy[Any]], Any]


def factorizations(size: int) -> list[list[int]]:
    """Every way to write a size as an ordered product of up to four numbers, 1 not among them."""
    found = [[size]]
    for first in range(2, size // 2 + 1):
        if size % first == 0:
            found += [[first, *rest] for rest in factorizations(size // first) if len(rest) < 4]
    return found


def axis(draw: Draw, graph: Graph, node: fx.Node, least: int = 1) -> int | None:
    """A dim of a node that is long enough."""
    sizes = graph.values[node].shape
    fitting = [i for i, size in enumerate(sizes) if size >= least]
    return draw(st.sampled_from(fitting)) if fitting else None


def reshape(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    size = prod(graph.values[node].shape)
    return graph.call(aten.reshape.default, node, draw(st.sampled_from(factorizations(size))))


def permute(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    order = draw(st.permutations(range(graph.values[node].dim())))
    return graph.call(aten.permute.default, node, list(order))


def expand(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    at = draw(st.integers(0, graph.values[node].dim()))
    new = graph.call(aten.unsqueeze.default, node, at)
    sizes = list(graph.values[new].shape)
    sizes[at] = draw(st.integers(1, 3))
    return graph.call(aten.expand.default, new, sizes)


def pieces(draw: Draw, graph: Graph, node: fx.Node) -> list[fx.Node]:
    """A dim cut by a split or by slices."""
    at = axis(draw, graph, node, 2)
    if at is None:
        return [node]
    size = graph.values[node].shape[at]
    cuts = sorted(draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=2)))
    bounds = [0, *cuts, size]
    if draw(st.booleans()):
        sizes = [end - start for start, end in pairwise(bounds)]
        split = graph.call(aten.split_with_sizes.default, node, sizes, at)
        return [graph.call(getitem, split, k) for k in range(len(sizes))]
    return [graph.call(aten.slice.Tensor, node, at, start, end) for start, end in pairwise(bounds)]


def recombine(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    """The pieces of a dim put together in another order, along some dim, or added where they are equal."""
    parts = draw(st.permutations(pieces(draw, graph, node)))
    shapes = {graph.values[part].shape for part in parts}
    if len(shapes) == 1 and len(parts) > 1 and draw(st.booleans()):
        return graph.call(aten.add.Tensor, parts[0], parts[1])
    fits = [
        i
        for i in range(graph.values[node].dim())
        if len({(*shape[:i], *shape[i + 1 :]) for shape in shapes}) == 1
    ]
    return graph.call(aten.cat.default, list(parts), draw(st.sampled_from(fits))) if fits else parts[0]


def one_piece(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    return draw(st.sampled_from(pieces(draw, graph, node)))


def twice(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    at = axis(draw, graph, node)
    return node if at is None else graph.call(aten.cat.default, [node, node], at)


def repeated(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    at = axis(draw, graph, node)
    if at is None:
        return node
    if draw(st.booleans()):
        return graph.call(aten.repeat_interleave.self_int, node, 2, at)
    counts = [1] * graph.values[node].dim()
    counts[at] = 2
    return graph.call(aten.repeat.default, node, counts)


def summed(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    """The sum with an earlier value of the same shape: their dims are one."""
    shape = graph.values[node].shape
    same = [n for n, value in graph.values.items() if getattr(value, "shape", None) == shape]
    return graph.call(aten.add.Tensor, node, draw(st.sampled_from(same)))


def turned(draw: Draw, graph: Graph, node: fx.Node) -> fx.Node:
    """The sum with the transpose, where that has the same shape."""
    sizes = graph.values[node].shape
    pairs = [(i, j) for i in range(len(sizes)) for j in range(i) if sizes[i] == sizes[j]]
    if not pairs:
        return node
    other = graph.call(aten.transpose.int, node, *draw(st.sampled_from(pairs)))
    return graph.call(aten.add.Tensor, node, other)


STEPS = [reshape, permute, expand, recombine, one_piece, twice, repeated, summed, turned]


@st.composite
def chains(draw: Draw) -> Graph:
    """A graph of a few steps that starts from a tensor whose elements are all different."""
    graph = Graph()
    size = draw(st.sampled_from([6, 8, 12, 16, 24, 36]))
    node = graph.numbers(*draw(st.sampled_from(factorizations(size))))
    for _ in range(draw(st.integers(1, 7))):
        if graph.values[node].numel() <= 96:
            node = draw(st.sampled_from(STEPS))(draw, graph, node)
    return graph


@settings(max_examples=150, deadline=None)
@given(chains())
def test_every_split_of_every_node_is_exact(graph: Graph) -> None:
    found = graph.infer()
    for call in found.links:
        parts = Parts(call, graph.values, found)
        for split in parts.splits():
            assert parts.error_of(split) == 0, f"{call.format_node()} split on {split.role}"


@settings(max_examples=150, deadline=None)
@given(chains())
def test_inference_never_changes_a_size(graph: Graph) -> None:
    found = graph.infer()
    for node, outputs in found.dims.items():
        sizes = tuple(tuple(size_of(resolve(dim)) for dim in dims) for dims in outputs)
        assert sizes == output_shapes(node)
