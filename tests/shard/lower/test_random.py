"""Random numbers follow the placement: equal where a value is the same on ranks, different where it is split."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from shard_case import Case, interpret, part
from shard_models import WIDTH, causal, gpt2, tokens
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.shard.placement import Shard
from fxpar.shard.sharded import Sharded

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def values(case: Case, sharded: Sharded, seed: int = 7) -> list[dict[fx.Node, object]]:
    """Every value on every rank, each of which starts with other random numbers of torch's own."""
    flat = case.program.flat_inputs(case.inputs)

    def body(rank: int, groups: Groups) -> dict[fx.Node, object]:
        torch.manual_seed(100 + rank)
        at = sharded.mesh.coordinate(rank)
        tensors = {
            name: part(laid, case.program.tensors[name].detach(), at)
            for name, laid in sharded.tensors.items()
        }
        return interpret(sharded.graph, tensors, flat, groups, seed)

    return list(simulate(sharded.mesh, body))


@pytest.fixture(scope="module")
def dropped() -> Case:
    torch.manual_seed(0)
    return Case(gpt2(0.1).double().train(), causal())


def is_random(node: fx.Node) -> bool:
    return "seed" in [str(n) for n in node.all_input_nodes]


@pytest.mark.parametrize(
    ("mesh", "table"),
    [("tp2", "default"), ("tp2", "whole_sequence"), ("cp2", "default"), ("dp2 tp2", "default")],
)
def test_dropout_follows_the_placement(dropped: Case, mesh: str, table: str) -> None:
    sharded = dropped.shard(mesh, table)
    ranks = values(dropped, sharded)
    drops = [node for node in sharded.graph.nodes if str(node.target) == "fxpar.dropout.default"]
    assert len(drops) == 5
    for node in drops:
        held = node.meta["held"]
        zeros = [rank[node] == 0 for rank in ranks]  # type: ignore[operator]
        for first in range(len(ranks)):
            for second in range(first):
                a, b = (sharded.mesh.coordinate(rank) for rank in (first, second))
                apart = any(a[m] != b[m] for m, state in held.items() if isinstance(state, Shard))
                assert torch.equal(zeros[first], zeros[second]) is not apart, node.format_node()


def test_no_two_ops_share_a_mask(dropped: Case) -> None:
    sharded = dropped.shard("tp2")
    drops = [node for node in sharded.graph.nodes if str(node.target) == "fxpar.dropout.default"]
    (rank, _) = values(dropped, sharded)
    patterns = {tuple((rank[node] == 0).flatten().tolist()) for node in drops}  # type: ignore[operator]
    assert len(patterns) == len(drops)


def test_the_seed_decides(dropped: Case) -> None:
    sharded = dropped.shard("tp2")
    drop = next(node for node in sharded.graph.nodes if str(node.target) == "fxpar.dropout.default")
    first, again, other = (values(dropped, sharded, seed)[0][drop] for seed in (7, 7, 8))
    assert torch.equal(first, again)  # type: ignore[arg-type]
    assert not torch.equal(first, other)  # type: ignore[arg-type]


def test_attention_draws_for_each_rank(dropped: Case) -> None:
    sharded = dropped.shard("tp2")
    attention = [n for n in sharded.graph.nodes if n.args[:1] == (ATTENTION,)]
    assert len(attention) == 2
    for node in attention:
        assert is_random(node)
        assert [str(name) for name in node.args[3]] == ["tp"]


def test_in_evaluation_nothing_is_random() -> None:
    torch.manual_seed(0)
    run = Case(gpt2(0.1).double().eval(), causal()).check("tp2")
    assert run.error < 1e-9, str(run)
    assert not [n for n in run.sharded.graph.nodes if is_random(n)]


class Noise(nn.Module):
    """Something random is added to an embedding."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.noise, self.tokens, self.norm = noise, nn.Embedding(96, WIDTH), nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.noise(x)
        y = F.scaled_dot_product_attention(*(x.view(4, 16, 4, 8).transpose(1, 2) for _ in range(3)))
        return self.norm(x + self.out(y.transpose(1, 2).flatten(2)))


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda x: torch.randn(4, 16, WIDTH, dtype=x.dtype),
    "rand of one dim": lambda x: torch.rand(16, 1, dtype=x.dtype),
    "randint": lambda _: torch.randint(0, 3, (4, 16, 1)),
    "randn_like": torch.randn_like,
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "drop path": lambda x: x * x.new_empty(4, 1, 1).bernoulli_(0.5),
    "normal in place": lambda x: x.new_empty(4, 16, WIDTH).normal_(),
    "uniform in place": lambda x: torch.zeros_like(x).uniform_(),
    "whole channels": lambda x: F.dropout1d(x, 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "multinomial": lambda x: torch.multinomial(x.detach().exp().view(-1, WIDTH), 1).view(4, 16, 1),
    "a permutation": lambda x: x[:, torch.randperm(16)],
    "gumbel": lambda x: F.gumbel_softmax(x, dim=-1),
}


@pytest.mark.parametrize("mesh", ["tp2", "cp2 tp2"])
@pytest.mark.parametrize("name", NOISES)
def test_every_random_op_is_seeded(name: str, mesh: str) -> None:
    """What is the same on ranks is the same, whatever torch's own generators hold there."""
    torch.manual_seed(0)
    case = Case(Noise(NOISES[name]).double(), {"ids": tokens()})
    sharded = case.shard(mesh)
    ranks = values(case, sharded)
    assert any(is_random(node) for node in sharded.graph.nodes)
    for node in sharded.graph.nodes:
        if node.op == "call_function" and "empty" not in node.format_node() and "held" in node.meta:
            _agree(sharded, node, [rank[node] for rank in ranks])


def _agree(sharded: Sharded, node: fx.Node, found: list[object]) -> None:
    split = [m for m, state in node.meta["held"].items() if state is not None]
    for rank, value in enumerate(found):
        at = sharded.mesh.coordinate(rank)
        first = sharded.mesh.rank({m: at[m] for m in split})
        assert isinstance(value, Tensor)
        assert torch.equal(value, found[first]), node.format_node()  # type: ignore[arg-type]
