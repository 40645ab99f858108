from __future__ import annotations

from operator import getitem
from typing import Any

import pytest
import torch
from graphs import RULES, Graph, aten, sample
from torch import fx

from fxpar.axes.factor import Dim, Factor, resolve
from fxpar.axes.infer import Inference, infer
from fxpar.axes.links import Links
from fxpar.axes.local import localize
from fxpar.axes.runs import cut_size


def half(found: Inference, node: fx.Node, role: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The call on one of two ranks that split a role on its first factor."""
    links: Links = found.links[node]
    factor: Factor = links.factors(role)[0]
    sites = {(output, axis) for output, axis, _ in links.sites(role, outputs=True)}

    def local_dim(call: fx.Node, output: int, dim: int) -> int:
        whole: Dim = resolve(found.dims[call][output][dim])
        return cut_size(whole, {factor: 2} if (output, dim) in sites else {})

    return localize(node, found, local_dim, lambda dim: cut_size(dim, {factor: 2}))


@pytest.mark.parametrize(
    ("op", "text", "role", "args"),
    [
        ("aten.view.default", "f[4,24], [4,6,-1]", "f0", [[2, 6, 4]]),
        ("aten.reshape.default", "f[4,24], [4,6,-1]", "f1", [[4, 3, 4]]),
        ("aten.reshape.default", "f[4,24], [-1]", "f1", [[48]]),
        ("aten.view_as.default", "f[4,24], f[4,6,4]", "f1", [[4, 3, 4]]),
        ("aten.expand.default", "f[4,1,6], [4,3,-1]", "d0", [[2, 3, 6]]),
        ("aten.expand.default", "f[4,1,6], [4,2,6]", "n1", [[4, 1, 6]]),
        ("aten.unflatten.int", "f[4,24], -1, [6,-1]", "f1", [-1, [3, 4]]),
        ("aten.repeat.default", "f[4,6], [3,1,2]", "d0", [[3, 1, 2]]),
        ("aten.repeat.default", "f[4,6], [2,1,2]", "n2", [[2, 1, 1]]),
        ("aten.repeat_interleave.self_int", "f[4,6], 4, 1", "d1", [4, 1]),
        ("aten.repeat_interleave.self_int", "f[4,6], 4, 1", "n1", [2, 1]),
        ("aten.slice.Tensor", "f[4,6], 1, 0, 6", "d1", [1, 0, 3]),
        ("aten.slice.Tensor", "f[4,6], 1, 0, 6", "d0", [1, 0, 6]),
        ("aten.slice.Tensor", "f[4,6], 1, 2, 4", "d0", [1, 2, 4]),
        ("aten.narrow.default", "f[4,6], 1, 0, 6", "d1", [1, 0, 3]),
        ("aten.transpose.int", "f[4,6], 0, 1", "d1", [0, 1]),
        ("aten.squeeze.dim", "f[2,6], 0", "d0", [[]]),
        ("aten.squeeze.default", "f[2,1,6]", "d0", [[1]]),
        ("aten.squeeze.default", "f[4,1,6]", "d0", []),
        ("aten.type_as.default", "f[4,6], i[3]<5", "d0", [torch.int64]),
        ("aten.layer_norm.default", "f[4,6], [6], f[6]", "...-1", [[6]]),
        ("aten.group_norm.default", "f[2,8,3], 4, f[8], f[8]", "g", [2]),
    ],
)
def test_literals(op: str, text: str, role: str, args: list[Any]) -> None:
    call = sample(op, text)
    _, new, _ = half(infer(call.graph, RULES), call.call, role)
    assert [value for value in new if not isinstance(value, fx.Node)] == args


def test_groups_of_a_convolution() -> None:
    call = sample("aten.conv1d.default", "f[2,6,7], f[12,1,3], groups=6")
    assert half(infer(call.graph, RULES), call.call, "g")[2] == {"groups": 3}


def test_what_does_not_change_stays() -> None:
    call = sample("aten.sum.dim_IntList", "f[4,6], [-1], true")
    node = call.call
    assert half(infer(call.graph, RULES), node, "d0") == (node.target, node.args, dict(node.kwargs))


def test_fused_parts_have_local_sizes_and_bounds() -> None:
    graph = Graph()
    x = graph.numbers(6, 16)
    parts = [graph.call(aten.slice.Tensor, x, 1, start, end) for start, end in ((0, 8), (8, 12), (12, 16))]
    split = graph.call(aten.split_with_sizes.default, x, [8, 4, 4], -1)
    graph.call(aten.add.Tensor, parts[1], parts[2])
    heads = graph.call(aten.view.default, parts[0], [6, 4, 2])
    graph.call(aten.add.Tensor, graph.call(aten.view.default, parts[1], [6, 4, 1]), heads)
    found = graph.infer()
    kept = [half(found, part, "d1")[1][1:] for part in parts]
    assert kept == [(1, 0, 4), (1, 4, 6), (1, 6, 8)]
    target, args, kwargs = half(found, split, "d1")
    assert (target, args, kwargs) == (aten.split_with_sizes.default, (x, [4, 2, 2], 1), {})


def test_a_chunk_becomes_a_split_with_sizes() -> None:
    graph = Graph()
    x = graph.numbers(6, 12)
    halves = graph.call(aten.chunk.default, x, 2, -1)
    first, second = (graph.call(getitem, halves, i) for i in range(2))
    graph.call(aten.mul.Tensor, first, second)
    target, args, _ = half(graph.infer(), halves, "d1")
    assert (target, args) == (aten.split_with_sizes.default, (x, [3, 3], 1))


def test_a_factor_that_is_split_in_another_dim() -> None:
    graph = Graph()
    x = graph.numbers(4, 10)
    left, right = (graph.call(aten.slice.Tensor, x, 1, *bounds) for bounds in ((0, 4), (4, 10)))
    graph.call(aten.add.Tensor, left, graph.call(aten.transpose.int, left, 0, 1))
    assert half(graph.infer(), right, "d0")[1][1:] == (1, 4, 10)


def test_a_call_of_no_op_stays() -> None:
    graph = Graph()
    parts = graph.call(aten.unbind.int, graph.numbers(2, 4), 0)
    first = graph.call(getitem, parts, 0)
    assert localize(first, graph.infer(), lambda *_: 0, lambda _: 0) == (getitem, (parts, 0), {})
