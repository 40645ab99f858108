"""Axes that do not divide: outputs and every gradient are the whole model's, and padding stays zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from shard_case import Case, Run, rows
from shard_models import bert, causal, gpt2, llama, padded, t5
from torch import Tensor, nn
from torch.nn import functional as F

from fxpar.errors import PlanError

EXACT = 1e-9
BATCH, LENGTH, WIDTH = 2, 6, 8
TABLE = "heads: tp\nffn: tp\nvocab: tp~\nbatch: [dp, mb]\n"


def gemma2(**config: Any) -> nn.Module:
    """A tied head with a soft cap on the logits, which is written out."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "use_cache": False}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **heads, **config))


MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[[], dict[str, Any]]]] = {
    "llama": (llama, causal),
    "gpt2": (gpt2, causal),
    "gemma2": (gemma2, causal),
    "bert": (bert, padded),
    "t5": (t5, padded),
}


@cache
def case(name: str, vocab: int = 97, **config: Any) -> Case:
    """A model with another vocabulary than its inputs were made for."""
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    given = {k: v.clamp(max=vocab - 1) if k != "attention_mask" else v for k, v in inputs().items()}
    return Case(build(vocab_size=vocab, **config).double().train(), given)


def collectives(run: Run) -> set[str]:
    """The collectives whose results are as large as logits."""
    return {
        str(n.target).split(".")[1]
        for n in run.sharded.graph.nodes
        if str(n.target).startswith("fxpar.") and "vocab" in n.meta.get("dims", ())
    }


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp4", "dp2 tp2"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_vocabularies_that_do_not_divide(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.fraction > 0.8
    assert any(note.startswith("vocab = 97 is split unevenly over tp") for note in run.sharded.notes)
    assert not collectives(run)


def test_the_head_of_each_rank_and_its_padding() -> None:
    run = case("gpt2").check("tp4")
    laid = run.sharded.tensors["transformer.wte.weight"]
    assert laid.local_shape == (25, 32)
    assert [laid.boxes({"tp": rank})[0].sizes for rank in range(4)] == [(25, 32)] * 3 + [(22, 32)]
    assert not run.ranks[3].gradients["transformer.wte.weight"][22:].any()


def test_ranks_without_any_row() -> None:
    """33 over 8: five on each, three on the seventh, none on the last."""
    run = case("llama", 33, num_key_value_heads=8).check("tp8")
    assert run.error < EXACT, str(run)
    assert run.sharded.notes[0].endswith("tp = 8: 5, 5, 5, 5, 5, 5, 3 and 0")


def test_a_soft_cap_between_head_and_loss() -> None:
    run = case("gemma2").check("tp4")
    assert run.error < EXACT, str(run)
    assert collectives(run) == {"zero_padding"}


def test_a_mesh_dim_in_pieces() -> None:
    """Two heads of keys over four ranks: the vocabulary is split over one piece alone."""
    run = case("llama", num_key_value_heads=2).check("tp4")
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["lm_head.weight"].split_over == ("tp1",)


class Head(nn.Module):
    """Logits of a table of rows, and what is made of them."""

    def __init__(self, made: Callable[[Head, Tensor, Tensor], Any], vocab: int) -> None:
        super().__init__()
        self.made, self.vocab = made, vocab
        self.tokens, self.head = nn.Embedding(vocab, WIDTH), nn.Linear(WIDTH, vocab)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, LENGTH)[:, None])

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        logits = self.head(self.tokens(ids))
        return entropy(self, logits, labels), *self.made(self, logits, labels)


def entropy(model: Head, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(x.reshape(-1, model.vocab), y.reshape(-1), **options)


def _soft(model: Head, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """Contractions over the classes: soft embeddings, a tied table used both ways, and from the left."""
    table = model.tokens.weight
    mixed = x.softmax(-1) @ table, x @ table, torch.einsum("bsv,vh->bsh", x, table), x.tanh() @ table
    return *mixed, table.T @ model.head.weight, x @ x.mT


def _reduced(model: Head, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    sums = x.sum(-1), x.exp().sum(-1), x.sum(), x.mean(-1), x.mean(), (x**2).mean((0, 1, 2))
    best = x.argmax(-1), x.amax(-1), x.topk(3, -1).values, x.logsumexp(-1), x.norm(dim=-1), x.var(-1)
    return *sums, *best, model.head.weight.sum(), model.head.bias.square().sum(), model.tokens.weight.mean(0)


def _pointwise(model: Head, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """Of zeros, these have no finite value or gradient."""
    wild = (x + 9).log(), 1 / x, x.abs().sqrt(), x / x.detach(), (x - x.detach() + 2).rsqrt()
    return *wild, x / model.gain, model.gain / (x + 9), x * model.gain, x + model.gain, x - model.gain.exp()


def _losses(model: Head, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(0.5, 2, model.vocab, dtype=x.dtype)
    third = torch.full_like(x, 0.3)
    usual = (
        entropy(model, x, y),
        entropy(model, x, y, reduction="sum"),
        entropy(model, x, y, reduction="none"),
    )
    smooth = (
        entropy(model, x, y, label_smoothing=0.1),
        entropy(model, x, y, weight=weight, label_smoothing=0.2),
    )
    ignoring = entropy(model, x, y.clamp(min=0), ignore_index=0), F.cross_entropy(x.mT, y, weight=weight)
    soft = entropy(model, x, y) + 0.01 * x.logsumexp(-1).square().mean(), F.mse_loss(x, third)
    binary = partial(F.binary_cross_entropy_with_logits, x, third)
    return *usual, *smooth, *ignoring, *soft, binary(), binary(reduction="sum"), binary(reduction="none")


def _views(model: Head, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    turned = x.transpose(1, 2).flatten(1), x.reshape(BATCH, -1), x.permute(2, 0, 1), x.flip(1), x.flip(-1)
    several = x.repeat(1, 2, 1), torch.cat([x, x], 1), torch.cat([x, x], -1), torch.stack([x, x]), x[..., 1:]
    bias = model.head.bias.expand(3, -1), model.head.weight.T, x.cumsum(-1), x.cumsum(1), x[..., :-1].sum(-1)
    return *turned, *several, *bias, F.pad(x, (1, 1), value=3.0), F.pad(x, (0, 0, 1, 0), value=3.0) @ x.mT


def _table(model: Head, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The rows of parameters, computed before they are used."""
    table = (model.tokens.weight + 2).log() * 0.1
    return F.embedding(y.clamp(min=0), table), table.exp().sum(0), x.sum((0, 1)) * model.head.bias, x @ table


@cache
def head(made: Callable[..., Any], vocab: int) -> Case:
    torch.manual_seed(0)
    ids = torch.randint(0, vocab, (BATCH, LENGTH))
    labels = torch.randint(0, vocab, (BATCH, LENGTH))
    labels[0, 2:4] = -100
    return Case(Head(made, vocab).double(), {"ids": ids, "labels": labels})


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "tp8", "dp2 tp4"])
@pytest.mark.parametrize("vocab", [33, 97])
@pytest.mark.parametrize("made", [_soft, _reduced, _pointwise, _losses, _views, _table])
def test_whatever_is_made_of_logits(made: Callable[..., Any], vocab: int, mesh: str) -> None:
    run = head(made, vocab).check(mesh, rows(TABLE))
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["head.weight"].split_over == ("tp",)


def test_a_row_without_the_mark_refuses() -> None:
    with pytest.raises(PlanError, match="axis `vocab` does not divide over `tp`"):
        case("gpt2").shard("tp2", rows("heads: tp\nvocab: tp"))


class Heads(nn.Module):
    """Three heads, each parameter with a dim of its own for them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3, 3, 4, WIDTH) * 0.3)
        self.out = nn.Parameter(torch.randn(3, 4, WIDTH) * 0.3)
        self.tokens, self.sink = nn.Embedding(16, WIDTH), nn.Parameter(torch.randn(3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = (torch.einsum("bsw,hdw->bhsd", x, w) for w in self.qkv.unbind(0))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True) * self.sink[:, None, None]
        return torch.einsum("bhsd,hdw->bsw", y, self.out)


def test_any_axis_may_be_uneven() -> None:
    torch.manual_seed(0)
    subject = Case(Heads().double(), {"ids": torch.randint(0, 16, (BATCH, LENGTH))})
    run = subject.check("tp2", rows("heads: tp~"))
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["out"].local_shape == (2, 4, WIDTH)


def test_an_axis_inside_a_stored_dim_is_refused() -> None:
    """Padding would stand between the rows of a file."""
    with pytest.raises(PlanError, match="axis `heads` does not divide over `tp`"):
        case("llama").shard("tp3", rows("heads: tp~"))


def test_a_sequence_may_be_uneven() -> None:
    run = head(_losses, 33).check("cp4", rows("sequence: cp~\nvocab: tp~"))
    assert run.error < EXACT, str(run)
    model = case("llama").check("cp3", rows("sequence: cp~"))
    assert model.error < EXACT, str(model)
