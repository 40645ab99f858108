"""The roles that the handlers of `shape:` rules find, and the factors that views learn."""

from __future__ import annotations

from operator import getitem

import pytest
import torch
from graphs import Graph, Letters, aten, roles
from torch import fx

from fxpar.axes.factor import resolve


@pytest.mark.parametrize(
    ("op", "text", "wanted"),
    [
        ("aten.reshape.default", "f[4,6,8], [4,48]", "f0 f1 f2 -> f0 f1*f2"),
        ("aten.view_as.default", "f[4,6], f[24]", "f0 f1, 1 -> f0*f1"),
        ("aten.permute.default", "f[4,6,8], [2,0,1]", "d0 d1 d2 -> d2 d0 d1"),
        ("aten.transpose.int", "f[4,6,8], -1, 0", "d0 d1 d2 -> d2 d1 d0"),
        ("aten.mT.default", "f[4,6,8]", "d0 d1 d2 -> d0 d2 d1"),
        ("aten.numpy_T.default", "f[4,6]", "d0 d1 -> d1 d0"),
        ("aten.movedim.int", "f[4,6,8], 0, -1", "d0 d1 d2 -> d1 d2 d0"),
        ("aten.expand.default", "f[4,1,6], [2,4,3,-1]", "d0 1 d2 -> n0 d0 n2 d2"),
        ("aten.unsqueeze.default", "f[4,6], -1", "d0 d1 -> d0 d1 1"),
        ("aten.squeeze.default", "f[1,4,1,6]", "1 d1 1 d3 -> d1 d3"),
        ("aten.squeeze.dim", "f[4,1], 0", "d0 1 -> d0 1"),
        ("aten.slice.Tensor", "f[4,6], 1, 2, 4", "d0 !1 -> d0 !new1"),
        ("aten.slice.Tensor", "f[4,6], 1, -9, 99", "d0 d1 -> d0 d1"),
        ("aten.narrow.default", "f[4,6], 1, 2, 2", "d0 !1 -> d0 !new1"),
        ("aten.select.int", "f[4,6,8], 1, -1", "d0 !1 d2 -> d0 d2"),
        ("aten.unbind.int", "f[4,2,8], 1", "d0 !1 d2 -> d0 d2, d0 d2"),
        ("aten.unfold.default", "f[4,6,8], 1, 3, 2", "d0 !1 d2 -> d0 !new1 d2 !new3"),
        ("aten.split.Tensor", "f[4,6], 4, 1", "d0 d1 -> d0 d1, d0 d1"),
        ("aten.tensor_split.indices", "f[4,6], [2], 0", "d0 d1 -> d0 d1, d0 d1"),
        ("aten.cat.default", "[f[4,6], f[0], f[4,2]], 1", "d0 d1, 1, d0 d1 -> d0 d1"),
        ("aten.stack.default", "[f[4,6], f[4,6]], 1", "d0 d1, d0 d1 -> d0 !new1 d1"),
        ("aten.glu.default", "f[4,6]", "d0 d1 -> d0 d1"),
        ("aten.repeat.default", "f[4,6], [2,1,3]", "d0 d1 -> n0 d0 n2*d1"),
        ("aten.repeat_interleave.self_int", "f[4,6], 3, 1", "d0 d1 -> d0 d1*n1"),
        ("aten.pad.default", "f[4,6], [1,0]", "d0 !1 -> d0 !new1"),
        ("aten.type_as.default", "f[4,6], i[3]<5", "d0 d1, 1 -> d0 d1"),
        ("aten.softmax.int", "f[4,6], -1", "d0 d1 -> d0 d1"),
        ("aten.topk.default", "f[4,6], 2, 1", "d0 !d1 -> d0 !new1, d0 !new1"),
        ("aten.flip.default", "f[4,6], [1]", "d0 !d1 -> d0 !d1"),
        ("aten.roll.default", "f[4,6], [1]", "!d0 !d1 -> !d0 !d1"),
        ("aten.sum.dim_IntList", "f[4,6,8], [-1], true", "d0 d1 d2+ -> d0 d1 1"),
        ("aten.sum.default", "f[4,6]", "d0+ d1+ -> "),
        ("aten.mean.dim", "f[4,6,8], [1]", "d0 d1 d2 -> d0 d2"),
        ("aten.max.dim", "f[4,6], 1", "d0 !d1 -> d0, d0"),
        ("aten.argmax.default", "f[4,6]", "!d0 !d1 -> "),
        ("aten.diff.default", "f[4,6], 1, 1", "d0 !d1 -> d0 !new1"),
        ("aten.diff.default", "f[4,6], 1, 1, f[4,1]", "!0 !1, !0 1 -> !o0 !o1"),
        ("aten.mse_loss.default", "f[4,6], f[6], 0", "d0 d1, d1 -> d0 d1"),
        ("aten.mse_loss.default", "f[4,6], f[4,6], 1", "d0 d1, d0 d1 -> "),
        ("aten.mse_loss.default", "f[4,6], f[4,6], 2", "d0+ d1+, d0+ d1+ -> "),
        ("aten._weight_norm.default", "f[4,6,2], f[1,1,2], 2", "!0 !1 d2, 1 1 d2 -> !0 !1 d2"),
        ("aten._weight_norm.default", "f[4,6], f[1], -1", "!0 !1, 1 -> !o0 !o1"),
        ("aten.index.Tensor", "f[4,5,6], [null, i[2,3]<5]", "d0 !1 d2, i0 i1 -> d0 i0 i1 d2"),
        ("aten.index.Tensor", "f[4,5,6], [i[2,1]<4, null, i[3]<6]", "!0 d1 !2, i0 1, i1 -> i0 i1 d1"),
        ("aten.index.Tensor", "f[4,6], [b[4,6]]", "!0 !1, !0 !1 -> !o0"),
        ("aten.index_select.default", "f[4,6], 1, i[3]<6", "d0 !1, i -> d0 i"),
        (
            "aten.index_put.default",
            "f[4,5,6], [null, p[3]<5], f[4,3,1]",
            "d0 !1 d2, !i0, d0 !v1 1 -> d0 !1 d2",
        ),
        ("aten.index_put.default", "f[4,5], [null, p[3]<5], f[()]", "d0 !1, !i0,  -> d0 !1"),
        ("aten.index_put.default", "f[4,5], [b[4,5]], f[()]", "!0 !1, !0 !1,  -> !o0 !o1"),
        ("aten.index_add.default", "f[4,5], 1, p[3]<5, f[4,3]", "d0 !1, !i, d0 !v1 -> d0 !1"),
        ("aten.gather.default", "f[4,5], 1, i[4,3]<5", "d0 rows, d0 i -> d0 i"),
        ("aten.gather.default", "f[4,5], 1, i[2,3]<5", "!0 rows, !i0 i -> !i0 i"),
        ("aten.take_along_dim.default", "f[4,5], i[4,3]<5, 1", "d0 rows, d0 i -> d0 i"),
        ("aten.take_along_dim.default", "f[4,5], i[1,3]<5, 1", "!0 !1, 1 !1 -> !o0 !o1"),
        ("aten.take_along_dim.default", "f[4,5], i[3]<5", "!0 !1, !0 -> !o0"),
        ("aten.scatter.value", "f[4,5], 1, p[4,3]<5, 2", "d0 !1, d0 !v1 -> d0 !1"),
        ("aten.scatter.src", "f[4,5], 1, p[2,3]<5, f[4,5]", "!0 !1, !v0 !v1, !v0 !v1 -> !0 !1"),
        ("aten.slice_scatter.default", "f[4,5], f[4,2], 1, 0, 2", "d0 !1, d0 !v1 -> d0 !1"),
        ("aten.select_scatter.default", "f[4,5], f[4], 1, 0", "d0 !1, d0 -> d0 !1"),
        ("aten.new_zeros.default", "f[4,5], [3]", "!0 !1 -> n0"),
        ("aten.einsum.default", "'bhd,hd->b', [f[2,4,6], f[4,6]]", "b h+ d+, h+ d+ -> b"),
        ("aten.einsum.default", "'...ij,jk', [f[2,4,6], f[6,8]]", "...-1 i j+, j+ k -> ...-1 i k"),
        ("aten.conv2d.default", "f[2,4,5,5], f[6,4,3,3], f[6]", "n i+ !1 !2, o i+ !3 !4, o -> n o !5 !6"),
        ("aten.conv1d.default", "f[2,6,5], f[12,1,3], groups=6", "n g !1, g*o 1 !2 -> n g*o !3"),
        ("aten.layer_norm.default", "f[2,4,6], [4,6]", "...-1 !w !h -> ...-1 !w !h"),
        ("aten.nll_loss_nd.default", "f[4,6], i[4]<6", "n c, n -> "),
        ("aten.one_hot.default", "i[4,6]<5, 5", "d0 d1 -> d0 d1 classes"),
    ],
)
def test_roles(op: str, text: str, wanted: str) -> None:
    assert roles(op, text) == wanted


def dims(graph: Graph, *nodes: fx.Node) -> list[str]:
    found, letters = graph.infer(), Letters()
    return [letters.of(*found.dims[node][0]) for node in nodes]


def test_heads_are_found_in_the_weight() -> None:
    graph = Graph()
    x, weight = graph.input(torch.randn(2, 6, 8)), graph.input(torch.randn(12, 8))
    y = graph.call(aten.linear.default, x, weight)
    graph.call(aten.view.default, y, [2, 6, 3, 4])
    assert dims(graph, x, weight, y) == ["a b c", "(d e) c", "a b (d e)"]


def test_a_fused_projection_is_a_concatenation() -> None:
    graph = Graph()
    x, weight = graph.input(torch.randn(6, 8)), graph.input(torch.randn(16, 8))
    y = graph.call(aten.linear.default, x, weight)
    split = graph.call(aten.split_with_sizes.default, y, [8, 4, 4], -1)
    q, k, v = (graph.call(getitem, split, i) for i in range(3))
    heads = [graph.call(aten.view.default, part, [6, n, 2]) for part, n in ((q, 4), (k, 2), (v, 2))]
    graph.call(aten.add.Tensor, heads[1], heads[2])
    graph.call(aten.add.Tensor, graph.call(aten.slice.Tensor, heads[0], 1, 0, 2), heads[1])
    assert dims(graph, weight) == ["cat[(a b), (c b), (c b)] d"]


def test_repeated_key_heads_refine_the_query_heads() -> None:
    graph = Graph()
    q, k = graph.input(torch.randn(2, 8, 6)), graph.input(torch.randn(2, 2, 6))
    wide = graph.call(aten.expand.default, graph.call(aten.unsqueeze.default, k, 2), [2, 2, 4, 6])
    flat = graph.call(aten.reshape.default, wide, [2, 8, 6])
    graph.call(aten.add.Tensor, q, flat)
    assert dims(graph, q, k) == ["a (b c) d", "a b d"]


def test_slices_that_tile_a_dim_are_its_parts() -> None:
    graph = Graph()
    x = graph.numbers(4, 6)
    first = graph.call(aten.slice.Tensor, x, -1, 0, 3)
    second = graph.call(aten.narrow.default, x, 1, 3, 3)
    turned = graph.call(aten.cat.default, [second, first], -1)
    graph.call(aten.add.Tensor, x, turned)
    assert dims(graph, x, first) == ["a cat[b, b]", "a b"]


def test_values_that_move_along_a_dim_learn_nothing_of_it() -> None:
    """Neither a shift nor a roll cuts the dim into its first and its other elements."""
    graph = Graph()
    x = graph.numbers(6, 4)
    before = graph.call(aten.tanh.default, graph.call(aten.slice.Tensor, x, 0, 0, -1))
    shifted = graph.call(aten.cat.default, [graph.numbers(1, 4), before])
    graph.call(aten.add.Tensor, x, shifted)
    first, rest = (graph.call(aten.slice.Tensor, x, 0, *bounds) for bounds in ((0, 1), (1, 6)))
    rolled = graph.call(aten.cat.default, [rest, first])
    graph.call(aten.add.Tensor, x, rolled)
    assert dims(graph, x, shifted, rolled) == ["a b", "a b", "a b"]


def test_a_slice_of_a_slice_may_be_put_back() -> None:
    graph = Graph()
    x = graph.numbers(8)
    inner = graph.call(aten.slice.Tensor, graph.call(aten.slice.Tensor, x, 0, 1, 8), 0, 0, 6)
    put = graph.call(aten.cat.default, [graph.numbers(2), inner])
    graph.call(aten.add.Tensor, x, put)
    assert dims(graph, x, put) == ["a", "a"]


def test_what_a_slice_is_found_to_be_may_have_something_put_to_it() -> None:
    """A column is put to attention weights and cut off again; in the next layer it is put to them again."""
    graph = Graph()
    x, sink = graph.numbers(8), graph.numbers(1)
    for _ in range(2):
        joined = graph.call(aten.cat.default, [x, sink])
        x = graph.call(aten.add.Tensor, x, graph.call(aten.slice.Tensor, joined, 0, 0, -1))
    assert dims(graph, joined, x) == ["cat[a, 1]", "a"]


def test_slices_that_overlap_are_not() -> None:
    graph = Graph()
    x = graph.numbers(4, 6)
    first = graph.call(aten.slice.Tensor, x, -1, 0, 4)
    second = graph.call(aten.slice.Tensor, x, -1, 3, 6)
    assert dims(graph, x, first, second) == ["a b", "a c", "a d"]
    assert resolve(graph.infer().dims[first][0][1])


def test_slices_that_alternate_are_the_major_part() -> None:
    graph = Graph()
    x = graph.numbers(4, 6)
    gates, values = (graph.call(aten.slice.Tensor, x, -1, start, 6, 2) for start in (0, 1))
    for node in (gates, values):
        node.meta["grad"] = True
    assert dims(graph, x, gates, values) == ["a (b c)", "a b", "a b"]


@pytest.mark.parametrize(("starts", "grad"), [([0], True), ([0, 1], False)])
def test_slices_that_leave_something_out_or_need_no_gradient_are_not(starts: list[int], grad: bool) -> None:
    graph = Graph()
    x = graph.numbers(4, 6)
    slices = [graph.call(aten.slice.Tensor, x, -1, start, 6, 2) for start in starts]
    for node in slices:
        node.meta["grad"] = grad
    assert dims(graph, x, slices[0]) == ["a b", "a c"]
