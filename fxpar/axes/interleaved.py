"""Dims whose parts alternate: gates and values of a feed-forward in one weight, pairs of a rotary embedding.

x[..., 0::2], x[..., 1::2]    of 12 elements: x is (6 2), and each slice takes the 6
"""

from __future__ import annotations

from collections import defaultdict

from torch import fx

from fxpar.axes.factor import Dim, fresh, size_of
from fxpar.axes.schema import arguments, op_name
from fxpar.axes.unify import unify

SLICE = "aten.slice.Tensor"


def strides(graph: fx.Graph) -> dict[fx.Node, int]:
    """The steps of slices `x[0::n]` to `x[n-1::n]` of one dim, where a gradient flows and all n of them are there."""
    slices: dict[tuple[fx.Node, int, int], dict[int, list[fx.Node]]] = defaultdict(lambda: defaultdict(list))
    for node in graph.nodes:
        if op_name(node) == SLICE and node.meta.get("grad"):
            given = arguments(node)
            source, dim, step = given["self"], given["dim"], given["step"]
            size = int(source.meta["val"].shape[dim])
            start, end, _ = slice(given["start"], given["end"]).indices(size)
            if step > 1 and start < step and end == size and size % step == 0:
                slices[source, dim % source.meta["val"].dim(), step][start].append(node)
    return {
        node: step
        for (_, _, step), starts in slices.items()
        if len(starts) == step
        for nodes in starts.values()
        for node in nodes
    }


def major(dim: Dim, step: int) -> Dim:
    """The major part of a dim of which every `step`-th element is taken: it becomes (major step)."""
    part = fresh(size_of(dim) // step)
    unify(dim, (*part, *fresh(step)))
    return part
