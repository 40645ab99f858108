"""Regions that every rank computes as a whole, because what they need is gathered anyway: no activation is moved."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from shard_case import Case, Run
from shard_models import BATCH, LENGTH, WIDTH, tokens
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, DEPTH = 8, 4
EXACT = 1e-9
#: The embedding and the output of attention are reduced, the input of attention is gathered; and back.
FEWEST = 3


class Shared(nn.Module):
    """Attention with one head of keys and values for all heads, made from `source`."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.tokens, self.norm = source, nn.Embedding(96, WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, DEPTH), nn.Linear(WIDTH, DEPTH)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.tokens(ids)
        y = self.norm(x)
        z = torch.tanh(x) if self.source == "another" else y
        q = self.q(y).view(BATCH, LENGTH, HEADS, DEPTH).transpose(1, 2)
        k, v = (f(z)[:, None].expand(-1, HEADS, -1, -1) for f in (self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return (x, k) if self.source == "what is also given out" else (x,)


class Latent(nn.Module):
    """Keys and values of each head made from a small projection, and a part of the key that all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(96, WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, HEADS * 6, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.down, self.latent_norm = nn.Linear(WIDTH, 12, bias=False), nn.RMSNorm(10)
        self.up = nn.Linear(10, HEADS * 2 * DEPTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        y = self.norm(x)
        q = self.q(y).view(BATCH, LENGTH, HEADS, 6).transpose(1, 2)
        latent, shared = self.down(y).split([10, 2], -1)
        both = self.up(self.latent_norm(latent)).view(BATCH, LENGTH, HEADS, 2 * DEPTH).transpose(1, 2)
        k, v = both.split([DEPTH, DEPTH], -1)
        k = torch.cat([k, torch.cos(shared)[:, None].expand(-1, HEADS, -1, -1)], -1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(attended.transpose(1, 2).flatten(2))


MODULES = {
    "shared keys": lambda: Shared("what is gathered"),
    "fed by another value": lambda: Shared("another"),
    "also given out": lambda: Shared("what is also given out"),
    "latent keys": Latent,
}


@cache
def case(name: str) -> Case:
    """A module of the table, captured."""
    torch.manual_seed(0)
    return Case(MODULES[name]().double(), {"ids": tokens()})


def inserted(run: Run) -> Counter[str]:
    """How many of each runtime op that talks to other ranks stand in the graph."""
    local = ("slice", "keep_on_first", "embedding")
    found = [
        str(node.target).split(".")[1] for node in run.sharded.graph.nodes if "fxpar." in str(node.target)
    ]
    return Counter(name for name in found if name not in local)


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2", "dp2 tp2"])
@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize("name", MODULES)
def test_exact(name: str, table: str, mesh: str) -> None:
    run = case(name).check(mesh, table)
    assert run.error < EXACT, str(run)


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("name", ["shared keys", "latent keys"])
def test_nothing_is_moved_for_what_all_heads_share(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert inserted(run) == Counter(reduce_scatter=2, all_gather=1)
    for counter in run.counters:
        assert counter.calls(phase="forward") == counter.calls(phase="backward") == FEWEST
    run = case(name).check(mesh, "whole_sequence")
    assert inserted(run) == Counter(all_reduce=2, sum_gradient=1)
    assert [counter.calls(phase="backward") for counter in run.counters] == [1] * len(run.counters)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("shared keys", ["k.weight", "k.bias", "v.weight", "v.bias"]),
        ("latent keys", ["down.weight", "latent_norm.weight"]),
    ],
)
def test_gradients_of_the_region_are_summed_once_a_step(name: str, shared: list[str], table: str) -> None:
    layout = case(name).shard("tp2", table).tensors
    for path in shared:
        assert (layout[path].split_over, layout[path].reduce) == ((), ("tp",)), path
    for path in ("q.weight", "out.weight", *["up.weight"] * (name == "latent keys")):
        assert (layout[path].split_over, layout[path].reduce) == (("tp",), ()), path


@pytest.mark.parametrize("name", ["shared keys", "latent keys"])
def test_the_region_works_on_what_is_gathered_for_others(name: str) -> None:
    graph = case(name).shard("tp2").graph
    (gather,) = [node for node in graph.nodes if str(node.target).startswith("fxpar.all_gather")]
    used = {user.args[1].meta["name"] for user in gather.users}
    assert used == (
        {"q.weight", "k.weight", "v.weight"} if name == "shared keys" else {"q.weight", "down.weight"}
    )
    assert all(user.meta["val"].shape[1] == LENGTH for user in gather.users)


def test_a_region_that_is_not_fed_stays_as_it_is() -> None:
    """tanh(x) is gathered for nobody else: keys and values are made of the rank's slice, and gathered.

    They are before they are repeated for every head, which moves less than an all-to-all behind that, or than the
    gathering of gradients behind that where the sequence is whole.
    """
    run = case("fed by another value").check("tp2")
    assert inserted(run) == Counter(reduce_scatter=2, all_gather=3)
    made = next(n for n in run.sharded.graph.nodes if str(n.target) == "aten.tanh.default")
    assert made.meta["placement"] == "Shard(1, sequence) over tp"
    run = case("fed by another value").check("tp2", "whole_sequence")
    assert run.sharded.tensors["k.weight"].reduce == ()
    assert inserted(run) == Counter(all_reduce=2, sum_gradient=3)


def test_what_is_given_out_is_not_replicated() -> None:
    """Of keys and values, only the values feed nothing but split work."""
    run = case("also given out").check("tp2")
    assert inserted(run) == Counter(reduce_scatter=2, all_gather=1, all_to_all=1)
    for table, wanted in (("default", ("tp",)), ("whole_sequence", ())):
        layout = case("also given out").shard("tp2", table).tensors
        assert layout["k.weight"].reduce == wanted
        assert layout["v.weight"].reduce == ("tp",)


def test_keys_and_values_of_a_split_sequence_are_gathered() -> None:
    """cp splits queries as well: what feeds attention is no region, for a rank needs the others' keys."""
    run = case("shared keys").check("cp2")
    assert inserted(run) == Counter(all_gather=2)
    assert run.sharded.tensors["k.weight"].reduce == ("cp",)
