"""The walk: precedence, views, partial sums, and what is placed backwards from its consumers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shard_case import Case, rows
from shard_models import FFN, WIDTH, case, tokens
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxpar.shard.sharded import Sharded


def runtime(sharded: Sharded) -> list[str]:
    """The names of the runtime ops in the graph, in order."""
    return [str(n.target).split(".")[1] for n in sharded.graph.nodes if str(n.target).startswith("fxpar.")]


def calls(sharded: Sharded, name: str) -> list[fx.Node]:
    return [node for node in sharded.graph.nodes if str(node.target).startswith(name)]


def test_the_first_row_wins() -> None:
    """ffn before sequence: the feed-forward weights are split, and activations are gathered for them."""
    ffn_first = case("llama").shard("tp2", rows('ffn: tp\nsequence: ["tp?"]'))
    sequence_first = case("llama").shard("tp2", rows('sequence: ["tp?"]\nffn: tp'))
    name = "model.layers.0.mlp.up_proj.weight"
    assert ffn_first.tensors[name].split_over == ("tp",)
    assert sequence_first.tensors[name].split_over == ()
    assert sequence_first.tensors[name].reduce == ("tp",)


def test_every_value_says_where_it_lies_and_why() -> None:
    sharded = case("llama").shard("tp2")
    node = next(n for n in calls(sharded, "aten.linear") if "q_proj" in n.meta["module"])
    assert node.meta["placement"] == "Shard(2, heads) over tp"
    assert node.meta["dims"][:2] == ("batch", "sequence")
    assert node.meta["dims"][2].startswith("(heads groups ")
    assert node.meta["rule"] == "rules/splits/default.yaml:2"
    gather = next(n for n in calls(sharded, "fxpar.all_gather") if "layers.0" in n.meta["module"])
    assert gather.meta["rule"].startswith("rules/splits/default.yaml:")


def test_what_q_k_and_v_share_is_gathered_once() -> None:
    gathers = calls(case("llama").shard("tp2"), "fxpar.all_gather")
    assert sorted(len(node.users) for node in gathers) == [1, 2, 2, 3, 3]


class Layers(nn.Module):
    """Two linear layers whose outputs go through `between` and are added."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.tokens, self.norm = nn.Embedding(96, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.other = nn.Linear(WIDTH, FFN), nn.Linear(WIDTH, FFN)
        self.down, self.last = nn.Linear(FFN, WIDTH), nn.Linear(FFN, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids))
        a, b = self.down(F.relu(self.up(x))), self.last(F.relu(self.other(x)))
        if self.kind == "linear":
            a, b = a.transpose(0, 1).clone().neg(), (b * 2).transpose(0, 1)
        return (torch.tanh(a) + b if self.kind == "curved" else a + b).sum()


def layers(kind: str) -> Sharded:
    run = Case(Layers(kind).double(), {"ids": tokens()}).check("tp2", rows("ffn: tp"))
    assert run.error < 1e-9, str(run)
    return run.sharded


def test_partial_sums_are_added_before_they_are_completed() -> None:
    assert runtime(layers("plain")).count("all_reduce") == 1
    assert runtime(layers("linear")).count("all_reduce") == 1


def test_what_is_not_linear_completes_a_partial_sum() -> None:
    sharded = layers("curved")
    reduced = calls(sharded, "fxpar.all_reduce")
    assert len(reduced) == 2
    assert any(str(user.target).startswith("aten.tanh") for user in reduced[0].users)


def test_a_view_starts_no_split() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(96, WIDTH)

        def forward(self, ids: Tensor) -> Tensor:
            return self.tokens(ids).transpose(0, 1).reshape(-1, WIDTH)

    sharded = Case(Views().double(), {"ids": tokens()}).shard("tp2", rows("hidden: tp"))
    assert runtime(sharded) == ["slice"] or sharded.tensors["tokens.weight"].split_over == ("tp",)
    assert "all_gather" not in runtime(sharded)


class Positions(nn.Module):
    """Positions from `arange`, a table made of parameters, a parameter used whole and split."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(96, WIDTH), nn.Embedding(16, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)
        self.scale, self.gain = nn.Parameter(torch.ones(FFN)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, ids: Tensor) -> dict[str, Any]:
        x = self.tokens(ids) + self.positions(torch.arange(16))
        y = self.down(F.relu(self.up(x)) * self.scale.exp())
        return {"y": y * self.gain, "penalty": self.scale.square().sum()}


@pytest.fixture(scope="module")
def positions() -> Case:
    return Case(Positions().double(), {"ids": tokens()})


def test_parameters_are_placed_as_they_are_used(positions: Case) -> None:
    run = positions.check("tp2", rows("ffn: tp"))
    assert run.error < 1e-9, str(run)
    tensors = run.sharded.tensors
    assert tensors["scale"].split_over == tensors["up.bias"].split_over == ("tp",)
    assert tensors["gain"].split_over == tensors["gain"].reduce == ()
    exp = calls(run.sharded, "aten.exp")[0]
    assert exp.meta["val"].shape == (FFN // 2,)


def test_constants_are_sliced_where_they_are_made(positions: Case) -> None:
    """Each rank has its own positions, and looks up only those."""
    run = positions.check("dp2", rows("positions: dp\nhidden: dp"))
    assert run.error < 1e-9, str(run)
    run = case("nanogpt").check("cp2")
    lookups = [n for n in calls(run.sharded, "aten.embedding") if n.meta["val"].dim() == 2]
    assert [tuple(n.meta["val"].shape) for n in lookups] == [(8, WIDTH)]
    numbers = [rank.values[lookups[0].args[1].name] for rank in run.ranks]
    assert [n.tolist() for n in numbers] == [[*range(8)], [*range(8, 16)]]


def test_replicated_parameters_have_their_gradients_summed(positions: Case) -> None:
    sharded = positions.shard("dp2", rows("batch: dp"))
    assert {laid.reduce for name, laid in sharded.tensors.items() if name != "scale"} == {("dp",)}
    assert "sum_gradient" in runtime(sharded) or sharded.tensors["scale"].reduce == ("dp",)


def test_a_tied_parameter_is_split_once() -> None:
    sharded = case("nanogpt").shard("tp2")
    tied = [name for name in sharded.tensors if name in ("tokens.weight", "head.weight")]
    assert len(tied) == 1
    assert sharded.tensors[tied[0]].split_over == ("tp",)
    assert sharded.tensors[tied[0]].reduce == ()
