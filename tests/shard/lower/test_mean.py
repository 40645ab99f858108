"""Means over dims that are split: exact, and what the mean is taken of is not gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from shard_case import Case, Run
from shard_models import BATCH, FFN, LENGTH, VOCAB, WIDTH, tokens
from torch import Tensor, nn
from torch.nn import functional as F

import fxpar

EXACT = 1e-9
HEADS, DEPTH = 8, 4


class Attention(nn.Module):
    """Attention in which queries and keys go through a norm, and the result through another."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm, self.tokens, self.gain = norm, nn.Embedding(VOCAB, WIDTH), nn.Parameter(torch.rand(WIDTH))
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def normed(self, x: Tensor) -> Tensor:
        x = x if self.norm != "features" else x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return x * self.gain

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        made = (self.normed(self.q(x)), self.normed(self.k(x)), self.v(x))
        q, k, v = (t.view(BATCH, LENGTH, HEADS, DEPTH).transpose(1, 2) for t in made)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if self.norm == "heads":
            y = y - y.mean((2, 3), keepdim=True)
        if self.norm == "each head":
            y = y - y.mean(-1, keepdim=True)
        return x + self.out(y.flatten(2))


class Pooled(Attention):
    """The mean over the sequence, as the representation of a text."""

    def __init__(self) -> None:
        super().__init__("none")
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(super().forward(ids).mean(1))


class Penalty(nn.Module):
    """The mean over all of a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = (
            nn.Embedding(VOCAB, WIDTH),
            nn.Linear(WIDTH, FFN),
            nn.Linear(FFN, WIDTH),
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.up(self.tokens(ids)))
        return self.down(hidden), hidden.square().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by hand": lambda x, y: (x - y).square().mean(),
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "kl": lambda x, y: F.kl_div(x, y.exp(), reduction="batchmean"),
    "soft margin": lambda x, y: F.soft_margin_loss(x, y.sign()),
    "binary": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), weight=y.exp()),
    "binary of logits": lambda x, y: F.binary_cross_entropy_with_logits(
        x, y.sigmoid(), pos_weight=y[0].exp()
    ),
}


class Fit(nn.Module):
    """A perceptron with a loss that is the mean over all elements."""

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.up, self.down, self.loss = nn.Linear(12, FFN), nn.Linear(FFN, 6), LOSSES[loss]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.down(F.relu(self.up(x))), y)


@cache
def case(name: str) -> Case:
    """One of the modules above, by its class or by its norm."""
    torch.manual_seed(0)
    model = {"pooled": Pooled, "penalty": Penalty}.get(name, lambda: Attention(name))()
    return Case(model.double(), {"ids": tokens()})


@cache
def fit(loss: str) -> Case:
    """A perceptron with a loss of the table."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 12, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    return Case(Fit(loss).double(), {"x": x, "y": y})


def moved(run: Run) -> Counter[tuple[str, tuple[int, ...]]]:
    """The collectives in the graph, each with the shape of its result."""
    local = ("slice", "keep_on_first", "sum_gradient", "embedding")
    found = [node for node in run.sharded.graph.nodes if str(node.target).startswith("fxpar.")]
    named = [(str(node.target).split(".")[1], tuple(node.meta["val"].shape)) for node in found]
    return Counter((name, shape) for name, shape in named if name not in local)


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2", "dp2 cp2 tp2"])
@pytest.mark.parametrize("name", ["features", "heads", "each head", "pooled", "penalty"])
def test_exact(name: str, mesh: str) -> None:
    for table in ("default", "whole_sequence"):
        run = case(name).check(mesh, table)
        assert run.error < EXACT, f"{table}: {run}"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("features", {("all_reduce", (BATCH, LENGTH, 1)): 2}),
        ("heads", {("all_reduce_both", (BATCH, LENGTH, 1, 1)): 1}),
    ],
)
@pytest.mark.parametrize("size", [2, 4])
def test_a_norm_over_all_heads_reduces_one_number_a_token(
    name: str, wanted: Mapping[tuple[str, tuple[int, ...]], int], size: int
) -> None:
    plain = moved(case("none").check(f"tp{size}", "whole_sequence"))
    more = moved(case(name).check(f"tp{size}", "whole_sequence"))
    assert more - plain == Counter(wanted)
    assert not plain - more


def test_a_norm_over_all_heads_beside_a_split_sequence() -> None:
    """The mean is made of split heads, and goes on as a slice of the sequence."""
    more = moved(case("features").check("tp2")) - moved(case("none").check("tp2"))
    assert more == Counter(
        {("reduce_scatter", (BATCH, LENGTH // 2, 1)): 2, ("all_gather", (BATCH, LENGTH, 1)): 2}
    )
    assert case("features").shard("tp2").tensors["q.weight"].split_over == ("tp",)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_a_norm_of_each_head_moves_nothing(table: str) -> None:
    assert moved(case("each head").check("tp2", table)) == moved(case("none").check("tp2", table))


@pytest.mark.parametrize(
    ("mesh", "group"), [("tp2", "tp"), ("cp2", "cp"), ("cp4", "cp"), ("cp2 tp2", "cp+tp")]
)
def test_a_pooled_sequence_is_reduced_in_one_call(mesh: str, group: str) -> None:
    run = case("pooled").check(mesh)
    assert run.error < EXACT, str(run)
    assert moved(run)["all_reduce", (BATCH, WIDTH)] == 1
    reduced = [n for n in run.sharded.graph.nodes if str(n.target) == "fxpar.all_reduce.default"]
    assert [n.args[1] for n in reduced] == [group]
    for_attention = 1 if mesh == "tp2" else 0
    assert moved(run)["all_gather", (BATCH, LENGTH, WIDTH)] == for_attention


def test_the_share_of_a_rank() -> None:
    """The mean of 4 of 16 tokens counts a quarter."""
    graph = case("pooled").shard("cp2 tp2").graph
    (mean,) = [node for node in graph.nodes if str(node.target) == "aten.mean.dim"]
    (share,) = mean.users
    assert str(share.target) == "aten.div.Tensor"
    assert share.args[1] == 4
    assert mean.args[0].meta["val"].shape[1] == LENGTH // 4


def test_a_mean_that_is_whole_stays_as_it_is() -> None:
    (mean,) = [
        node for node in case("pooled").shard("dp2").graph.nodes if str(node.target) == "aten.mean.dim"
    ]
    assert [str(user.target) for user in mean.users] == ["aten.linear.default"]


@pytest.mark.parametrize("mesh", ["tp2", "dp2", "dp2 tp2"])
def test_the_mean_of_a_split_hidden_layer_is_one_number_a_rank(mesh: str) -> None:
    run = case("penalty").check(mesh)
    assert run.error < EXACT, str(run)
    assert moved(run)["all_reduce", ()] == 1
    assert all(not shape or shape[-1] == WIDTH for _, shape in moved(run))
    assert run.sharded.tensors["up.weight"].split_over == (("tp",) if "tp" in mesh else ())


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_over_a_split_batch(loss: str) -> None:
    for mesh, size in (("dp2", 4), ("dp4", 2), ("dp2 tp2", 4)):
        run = fit(loss).check(mesh)
        assert run.error < EXACT, f"{mesh}: {run}"
        wanted = Counter({("all_reduce", ()): 1})
        assert moved(run) == wanted + Counter({("all_reduce", (size, 6)): 1} if "tp" in mesh else {})


@pytest.mark.parametrize("loss", ["by hand", "mse"])
def test_a_loss_in_microbatches(loss: str) -> None:
    subject = fit(loss)
    for plan in (fxpar.Plan(microbatches=4), fxpar.Plan(dp=2, microbatches=2)):
        report = fxpar.verify(subject.model, kwargs=subject.inputs, plan=plan, simulate=True)
        assert report.ok, report.text()


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_a_target_that_is_broadcast(loss: str) -> None:
    class Level(Fit):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            shown = self.down(F.relu(self.up(x)))
            return self.loss(*torch.broadcast_tensors(shown, y))

    torch.manual_seed(0)
    x, y = torch.randn(8, 12, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    run = Case(Level(loss).double(), {"x": x, "y": y}).check("dp2 tp2")
    assert run.error < EXACT, str(run)
    assert ("all_gather", (8, 6)) not in moved(run)
