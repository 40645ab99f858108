from __future__ import annotations

import pytest
import torch
from graphs import Graph, Letters, aten

from fxpar import yamlfile
from fxpar.axes.infer import infer
from fxpar.axes.oprule import read
from fxpar.capture.functions import FunctionCall
from fxpar.errors import RuleError


def test_a_tagged_op_needs_no_rule() -> None:
    graph = Graph()
    x, y = graph.input(torch.randn(4, 1, 6)), graph.input(torch.randn(5, 6))
    z = graph.call(aten.maximum.default, x, y)
    found, letters = graph.infer(), Letters()
    assert letters.of(*found.of(x)) == "a 1 b"
    assert letters.of(*found.of(z)) == "a c b"
    assert letters.of(*found.of(y)) == "c b"
    assert found.links[z].rule == "torch.Tag.pointwise:0"


@pytest.mark.parametrize("op", [aten.rrelu.default, aten.frexp.Tensor])
def test_a_random_op_or_one_of_two_outputs_does(op: torch._ops.OpOverload) -> None:
    graph = Graph()
    call = graph.call(op, graph.input(torch.randn(4, 6)))
    assert graph.infer().links[call].kind == "opaque"


def test_ops_without_a_rule_are_listed() -> None:
    graph = Graph()
    x = graph.input(torch.randn(4, 4))
    inverse = graph.call(aten.linalg_inv.default, x)
    known = graph.call(aten.trace.default, x)
    found = graph.infer()
    assert dict(found.unknown) == {"aten.linalg_inv.default": [inverse]}
    assert {role.meaning for role in found.links[inverse].roles.values()} == {"whole"}
    assert {role.meaning for role in found.links[known].roles.values()} == {"whole"}


def test_sums_to_integers_are_not_linear() -> None:
    graph = Graph()
    x = graph.input(torch.randn(4, 6))
    wide = graph.call(aten.to.dtype, x, torch.float64)
    whole = graph.call(aten.to.dtype, x, torch.int64)
    found = graph.infer()
    assert (found.links[wide].linear, found.links[whole].linear) == (True, False)


def test_a_bias_is_a_term() -> None:
    graph = Graph()
    x, weight, bias = (graph.input(torch.randn(size)) for size in ((4, 6), (8, 6), (8,)))
    with_bias = graph.call(aten.linear.default, x, weight, bias)
    without = graph.call(aten.linear.default, x, weight)
    found = graph.infer()
    assert found.links[with_bias].terms == {2}
    assert found.links[without].terms == frozenset()


def test_a_call_that_no_equation_fits_needs_its_operands_whole() -> None:
    graph = Graph()
    x, y = graph.input(torch.randn(4, 6)), graph.input(torch.randn(6, 8))
    node = graph.call(aten.mm.default, x, y)
    node.meta["module"] = "layers.0"
    text = '- op: aten.mm.default\n  equation: "n i, i -> n"\n'
    (entry,) = yamlfile.parse(text, "rules/ops/x.yaml", RuleError).list()
    found = infer(graph.graph, {"aten.mm.default": read(entry)[0]})
    assert found.unknown == {"aten.mm.default": [node]}
    assert found.links[node].kind == "opaque"


def test_a_factor_twice_in_a_tensor_is_not_split() -> None:
    graph = Graph()
    x = graph.input(torch.randn(4, 4))
    both = graph.call(aten.add.Tensor, x, graph.call(aten.t.default, x))
    flat = graph.call(aten.reshape.default, both, [16])
    found, letters = graph.infer(), Letters()
    assert letters.of(*found.of(x), *found.of(flat)) == "a a (a a)"
    links = found.links[flat]
    assert [links.factors(role) for role in sorted(links.roles)] == [[], []]


def test_the_diagonal_of_an_einsum_is_not_split() -> None:
    graph = Graph()
    call = graph.call(aten.einsum.default, "iij->ij", [graph.input(torch.randn(4, 4, 6))])
    links = graph.infer().links[call]
    assert links.factors("i") == []
    assert len(links.factors("j")) == 1


class Scaled(torch.autograd.Function):
    """Three times x, with a gradient of its own."""

    @staticmethod
    def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 3

    @staticmethod
    def backward(_ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 3


def test_a_rule_of_a_function_with_its_own_gradient() -> None:
    graph = Graph()
    x = graph.input(torch.randn(4, 6))
    node = graph.call(FunctionCall(Scaled), x)
    assert not graph.infer().unknown
    text = f'- op: {__name__}.Scaled\n  equation: "... -> ..."\n'
    (entry,) = yamlfile.parse(text, "rules/ops/x.yaml", RuleError).list()
    found = infer(graph.graph, {f"{__name__}.Scaled": read(entry)[0]})
    assert found.of(node) == found.of(x)
