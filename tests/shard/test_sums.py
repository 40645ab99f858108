"""Sums of several terms: products that are to be completed are added first, and completed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
import transformers
from shard_case import OPS, Case, Run, rows
from shard_models import _DECODER, FFN, LAYERS, VOCAB, WIDTH, causal, tokens
from torch import Tensor, fx, nn

from fxpar.shard.sums import ordered_sums

EXACT = 1e-9
LOSS = 2


class Terms(nn.Module):
    """Products and other values of the same size, and how they are added."""

    def __init__(self, add: Callable[..., Tensor]) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.ups = nn.ModuleList(nn.Linear(WIDTH, FFN) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(FFN, WIDTH) for _ in range(3))
        self.add = add

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return self.add(x.sin(), *(down(up(x).relu()) for up, down in zip(self.ups, self.downs)))


def case(add: Callable[..., Tensor]) -> Case:
    torch.manual_seed(0)
    return Case(Terms(add).double(), {"ids": tokens()})


def calls(run: Run) -> Counter[str]:
    """How many of each collective there are in the forward and backward pass of a rank."""
    counter = run.counters[0]
    return Counter({phase: counter.calls(phase=phase) for phase in ("forward", "backward")})


#: Where all products are added first already.
IN_ORDER = [
    lambda x, a, b, _: a + b + x,
    lambda x, a, b, c: x + (a + b + c),
    lambda x, a, b, c: (c + (b + a)) + x,
    lambda x, a, _, __: x + a,
    lambda x, a, b, c: (x + a * 2) * (b + c),
]
OUT_OF_ORDER = [
    lambda x, a, b, _: x + a + b,
    lambda x, a, b, _: a + x + b,
    lambda x, a, b, c: (x + a) + (b + c),
    lambda x, a, b, c: a + b + x + c,
    lambda x, a, b, c: x + 2 * a + b.transpose(0, 1).transpose(0, 1) + c / 3,
    lambda x, a, b, c: (x.exp() + a) + (x * x + (b + x.cos())) + c,
]


@pytest.mark.parametrize("add", IN_ORDER)
def test_what_is_in_order_stays(add: Callable[..., Tensor]) -> None:
    graph = case(add).program.graph
    assert ordered_sums(graph, OPS) is graph


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize("add", [*IN_ORDER[:3], *OUT_OF_ORDER])
def test_the_ranks_meet_once(add: Callable[..., Tensor], table: str) -> None:
    run = case(add).check("tp2", rows("ffn: tp"))
    assert run.error < EXACT, str(run)
    assert calls(run) == Counter(forward=1, backward=1)
    assert case(add).check("tp4", table).error < EXACT


@pytest.mark.parametrize("add", OUT_OF_ORDER)
def test_the_graph_that_was_given_stays_as_it_is(add: Callable[..., Tensor]) -> None:
    graph = case(add).program.graph
    before = [(node.name, node.args) for node in graph.nodes]
    ordered = ordered_sums(graph, OPS)
    assert ordered is not graph
    assert [(node.name, node.args) for node in graph.nodes] == before
    assert sorted(node.name for node in ordered.nodes) == sorted(node.name for node in graph.nodes)
    ordered.lint()


@pytest.mark.parametrize(
    "add",
    [
        lambda x, a, b, _: (x + a).relu() + b,
        lambda x, a, b, _: (s := x + a) * s + b,
        lambda x, a, b, _: torch.add(x + a, b, alpha=2),
        lambda x, a, b, _: x + a.relu() + b,
        lambda x, a, b, _: x + a + b.mean(0),
        lambda x, a, b, _: x + a + b * a,
    ],
)
def test_other_sums_stay(add: Callable[..., Tensor]) -> None:
    known = case(add)
    assert ordered_sums(known.program.graph, OPS) is known.program.graph
    assert known.check("tp2").error < EXACT


def test_terms_of_several_modules_stay() -> None:
    graph = fx.Graph()
    held = [graph.placeholder(f"p{i}") for i in range(3)]
    for node in held:
        node.meta["val"] = torch.empty(2, 2)
    products = [graph.call_function(torch.ops.aten.mm.default, (held[0], other)) for other in held[1:]]
    one = graph.call_function(torch.ops.aten.add.Tensor, (held[0], products[0]))
    both = graph.call_function(torch.ops.aten.add.Tensor, (one, products[1]))
    for node, module in ((products[0], "a"), (products[1], "b"), (one, "a"), (both, "b")):
        node.meta = {"val": torch.empty(2, 2), "module": module, "call": 0, "grad": True}
    graph.output((both,))
    assert ordered_sums(graph, OPS) is graph
    one.meta["module"] = "b"
    assert ordered_sums(graph, OPS) is not graph


def test_random_numbers_are_told_of_the_graph_that_was_given() -> None:
    case_ = case(lambda x, a, b, _: x.cos() + torch.dropout(x, 0.5, True) + a + b)
    sharded = case_.shard("tp2")
    assert ordered_sums(case_.program.graph, OPS) is not case_.program.graph
    assert sharded.program is case_.program
    assert [draw.node.graph for draw in sharded.draws] == [case_.program.graph]
    olds = [old for draw in sharded.draws for old, _ in draw.operands.values()]
    assert olds
    assert all(old.graph is case_.program.graph for old in olds)


@cache
def parallel(name: str) -> Case:
    """Attention and feed-forward side by side, added to the stream from left to right."""
    torch.manual_seed(0)
    kinds = {
        "cohere": (transformers.CohereForCausalLM, transformers.CohereConfig),
        "cohere2": (transformers.Cohere2ForCausalLM, transformers.Cohere2Config),
        "phi": (transformers.PhiForCausalLM, transformers.PhiConfig),
    }
    model, config = kinds[name]
    return Case(model(config(**_DECODER)).double().train(), causal())


@pytest.mark.parametrize("name", ["cohere", "cohere2", "phi"])
def test_blocks_side_by_side_take_one_sum_each_way(name: str) -> None:
    """2 collectives a layer and 2 more, where blocks one after the other take 4."""
    run = parallel(name).check("tp2", "whole_sequence")
    assert run.error < EXACT, str(run)
    for counter in run.counters:
        assert counter.calls("all_reduce", phase="forward") == LAYERS + 1 + LOSS
        assert counter.calls(phase="backward") == LAYERS + 1
        assert counter.calls() - LOSS == 2 * LAYERS + 2


@pytest.mark.parametrize("name", ["cohere", "cohere2", "phi"])
def test_blocks_side_by_side_with_a_split_sequence(name: str) -> None:
    run = parallel(name).check("cp2 tp2")
    assert run.error < EXACT, str(run)
    run = parallel(name).check("tp4")
    assert run.error < EXACT, str(run)
    for counter in run.counters:
        for phase in ("forward", "backward"):
            assert counter.calls("reduce_scatter", phase=phase) == LAYERS + 1
            assert counter.calls("all_gather", phase=phase) == LAYERS + 1
