"""Numbers that other systems get silently wrong: each is exact here, or refused before anything runs.

What the other files of this folder hold already is not repeated: gradients that are not summed, biases added on every
rank, heads that do not divide (test_assign), dropout (lower/test_random), masks (lower/test_attention).
"""

from __future__ import annotations

import pytest
import torch
from shard_case import Case, part
from shard_models import BATCH, LENGTH, case, causal, llama, phi3, tokens
from torch import Tensor, nn
from torch.nn import functional as F

EXACT = 1e-9


def rows_of(sharded_name: str, mesh: str, name: str) -> list[Tensor]:
    """The numbers of the rows of a parameter that each rank holds."""
    sharded = case(sharded_name).shard(mesh)
    laid = sharded.tensors[name]
    whole = torch.arange(laid.shape[0])[:, None].expand(laid.shape)
    return [part(laid, whole, sharded.mesh.coordinate(rank))[:, 0] for rank in range(sharded.mesh.world)]


def test_a_fused_projection_is_not_cut_contiguously() -> None:
    """phi3: 32 rows of queries, 16 of keys, 16 of values; each rank has some of each."""
    first, second = rows_of("phi3", "tp2", "model.layers.0.self_attn.qkv_proj.weight")
    assert first.tolist() == [*range(16), *range(32, 40), *range(48, 56)]
    assert second.tolist() == [*range(16, 32), *range(40, 48), *range(56, 64)]


def test_gate_and_up_in_one() -> None:
    first, _ = rows_of("phi3", "tp2", "model.layers.0.mlp.gate_up_proj.weight")
    assert first.tolist() == [*range(32), *range(64, 96)]


def test_a_fused_projection_with_its_outputs_last() -> None:
    sharded = case("gpt2").shard("tp2")
    laid = sharded.tensors["transformer.h.0.attn.c_attn.weight"]
    whole = torch.arange(96)[None].expand(32, 96)
    assert part(laid, whole, {"tp": 1})[0].tolist() == [*range(16, 32), *range(48, 64), *range(80, 96)]


@pytest.mark.parametrize("build", [llama, phi3])
def test_fewer_heads_of_keys_than_ranks(build: object) -> None:
    torch.manual_seed(0)
    model = build(num_key_value_heads=2, num_hidden_layers=1).double()  # type: ignore[operator]
    for table in ("default", "whole_sequence"):
        run = Case(model, causal()).check("tp4", table)
        assert run.error < EXACT, str(run)


@pytest.mark.parametrize("mesh", ["dp2", "dp4", "cp4", "dp2 cp2"])
def test_the_mean_of_means_is_not_the_mean(mesh: str) -> None:
    """The ranks count unequal numbers of tokens; one of them counts none."""
    torch.manual_seed(0)
    inputs = causal()
    inputs["labels"][0] = -100
    inputs["labels"][:, 4:8] = -100
    run = Case(llama(num_hidden_layers=1).double(), inputs).check(mesh)
    assert run.error < EXACT, str(run)


class Head(nn.Module):
    """A vocabulary with the losses that go with it."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(vocab, 32), nn.Linear(32, vocab)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.tokens(ids))
        flat, target = logits.flatten(0, 1), labels.flatten()
        smooth = F.cross_entropy(flat, target, label_smoothing=0.2, ignore_index=3)
        return {"smooth": smooth, "z": logits.logsumexp(-1).square().mean(), "best": logits.argmax(-1)}


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2", "dp2 cp2 tp2"])
def test_losses_over_a_split_vocabulary(mesh: str) -> None:
    run = Case(Head(64).double(), {"ids": tokens(0, 64), "labels": tokens(1, 64)}).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["head.weight"].split_over == ("tp",)


def test_nothing_is_padded() -> None:
    """The parts of a parameter make up just the parameter."""
    for name in ("llama", "gpt2", "phi3", "bert"):
        sharded = case(name).shard("cp2 tp4")
        for laid in sharded.tensors.values():
            seen = torch.zeros(laid.shape, dtype=torch.int64)
            for rank in range(sharded.mesh.world):
                for box in laid.boxes(sharded.mesh.coordinate(rank)):
                    seen[tuple(slice(o, o + n) for o, n in zip(box.offset, box.sizes))] += 1
            copies = sharded.mesh.world // (4 if "tp" in laid.split_over else 1)
            assert bool((seen == copies).all()), laid.name


class Norms(nn.Module):
    """Norms on the heads of queries and keys, a gain a head, and a shared key part."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(96, 32), nn.RMSNorm(32)
        self.q, self.k, self.v, self.out = (
            nn.Linear(32, 32),
            nn.Linear(32, 16),
            nn.Linear(32, 32),
            nn.Linear(32, 32),
        )
        self.q_norm, self.k_norm, self.shared = nn.RMSNorm(4), nn.LayerNorm(4), nn.Linear(32, 2)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids))
        q = self.q_norm(self.q(x).view(BATCH, LENGTH, 8, 4)).transpose(1, 2) * self.gain.exp()
        own = self.k(x).view(BATCH, LENGTH, 8, 2)
        k = torch.cat([own, self.shared(x)[:, :, None].expand(-1, -1, 8, -1)], -1)
        k, v = self.k_norm(k).transpose(1, 2), self.v(x).view(BATCH, LENGTH, 8, 4).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return F.cross_entropy((x + self.out(y)).flatten(0, 1), labels.flatten() % 32)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_what_is_replicated_and_feeds_split_work_has_its_gradient_summed(table: str) -> None:
    torch.manual_seed(0)
    run = Case(Norms().double(), {"ids": tokens(), "labels": tokens(1)}).check("tp2", table)
    assert run.error < EXACT, str(run)
    for name in ("q_norm.weight", "k_norm.weight", "k_norm.bias"):
        assert run.sharded.tensors[name].reduce == ("tp",), name
    assert run.sharded.tensors["gain"].split_over == ("tp",)


def test_one_tensor_given_for_two_inputs() -> None:
    torch.manual_seed(0)
    ids = tokens()
    run = Case(llama(num_hidden_layers=1).double(), {"input_ids": ids, "labels": ids}).check("dp2 tp2")
    assert run.error < EXACT, str(run)
