"""Log-probabilities that are written out by hand: heads split over the vocabulary, and no logits gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from shard_case import Case, Run
from torch import Tensor, fx, nn
from torch.nn import functional as F

EXACT = 1e-12
BATCH, LENGTH, WIDTH, VOCAB = 4, 8, 16, 64
#: What runtime ops of a split vocabulary are called.
OWN = ("softmax", "logsumexp", "gather.", "nll", "one_hot")


def chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probability of each token."""
    return F.log_softmax(logits, -1).gather(-1, ids[..., None])[..., 0]


def soft(logits: Tensor, ids: Tensor) -> Tensor:
    """Smoothed targets."""
    return 0.9 * F.one_hot(ids, logits.shape[-1]) + 0.1 / logits.shape[-1]


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    return -chosen(logits, ids).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gathered": _loss,
    "each token": chosen,
    "taken": lambda x, y: torch.take_along_dim(F.log_softmax(x, -1), y[..., None], -1).sum(),
    "less the sum": lambda x, y: (x.gather(-1, y[..., None])[..., 0] - x.logsumexp(-1)).sum(-1),
    "less the kept sum": lambda x, y: (x - x.logsumexp(-1, keepdim=True)).gather(-1, y[..., None]).mean(),
    "softmax": lambda x, y: F.softmax(x, -1).gather(-1, y[..., None]).log().sum(),
    "temperature": lambda x, y: chosen(x / 0.7, y).sum(),
    "upcast": lambda x, y: F.log_softmax(x, -1, dtype=torch.float64).gather(-1, y[..., None]).sum(),
    "upcast sum": lambda x, y: (x.gather(-1, y[..., None])[..., 0] - x.double().logsumexp(-1)).mean(),
    "shifted": lambda x, y: chosen(x[:, :-1], y[:, 1:]).sum(-1),
    "masked": lambda x, y: (chosen(x, y.clamp(min=1)) * (y > 9)).sum(-1) / (y > 9).sum(-1),
    "flat": lambda x, y: F.log_softmax(x.flatten(0, 1), -1).gather(1, y.flatten()[:, None]).mean(),
    "transposed": lambda x, y: F.log_softmax(x.transpose(1, 2), 1).gather(1, y[:, None]).mean(),
    "one hot": lambda x, y: -(F.one_hot(y, x.shape[-1]) * F.log_softmax(x, -1)).sum(-1),
    "one hot and powers": lambda x, y: (
        -((F.one_hot(y, x.shape[-1]) * F.softmax(x, -1)).sum(-1) + 1e-6).log().mean()
    ),
    "soft": lambda x, y: -(soft(x, y) * F.log_softmax(x, -1)).sum(-1).mean(),
    "divergence": lambda x, y: F.kl_div(F.log_softmax(x, -1), soft(x, y), reduction="batchmean"),
    "log divergence": lambda x, _: F.kl_div(
        F.log_softmax(x, -1), F.log_softmax(x.detach() / 2, -1), reduction="sum", log_target=True
    ),
    "nll": lambda x, y: F.nll_loss(F.log_softmax(x, -1).flatten(0, 1), y.flatten(), ignore_index=3),
    "nll of each": lambda x, y: F.nll_loss(F.log_softmax(x, -1).transpose(1, 2), y, reduction="none"),
    "nll of each part": lambda x, y: F.nll_loss(
        F.log_softmax(x, -1).transpose(1, 2),
        y.masked_fill(y > 40, -100),
        torch.linspace(0.5, 2, x.shape[-1]).to(x),
    ),
    "nll summed": lambda x, y: F.nll_loss(
        F.log_softmax(x[:, -1], -1), y[:, -1], torch.linspace(0.5, 2, x.shape[-1]).to(x), reduction="sum"
    ),
    "entropy": lambda x, _: -(F.softmax(x, -1) * F.log_softmax(x, -1)).sum(-1).mean(),
    "entropy of powers": lambda x, _: -(F.log_softmax(x, -1).exp() * F.log_softmax(x, -1)).sum(-1),
    "bonus": lambda x, y: (
        chosen(x, y).mean() - 0.1 * (F.log_softmax(x, -1).exp() * F.log_softmax(x, -1)).sum(-1).mean()
    ),
}


class Head(nn.Module):
    """A recurrence over an embedding, and a head of its own whose loss is written out."""

    def __init__(self, loss: str, vocab: int = VOCAB, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.up, self.down = (
            nn.Embedding(vocab, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )
        self.head, self.loss = nn.Linear(WIDTH, vocab, bias=not tied), loss
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + self.down(F.relu(self.up(x)))
        return LOSSES[self.loss](self.head(x), labels)


@cache
def case(loss: str, vocab: int = VOCAB, tied: bool = False) -> Case:
    """A head with a loss of the table."""
    torch.manual_seed(0)
    ids, labels = (torch.randint(0, vocab, (BATCH, LENGTH)) for _ in range(2))
    return Case(Head(loss, vocab, tied).double(), {"ids": ids, "labels": labels})


def large(run: Run, vocab: int = VOCAB) -> Counter[str]:
    """The collectives whose result has the vocabulary as a dim."""
    found = [
        n
        for n in run.sharded.graph.nodes
        if str(n.target).startswith("fxpar.") and n.meta.get("held") is not None
    ]
    local = ("softmax", "log_softmax", "embedding", "slice", "zero_padding", "sum_gradient")
    names = [(str(n.target).split(".")[1], tuple(n.meta["val"].shape)) for n in found]
    return Counter(name for name, shape in names if name not in local and vocab in shape)


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "dp2 tp2", "cp2 tp2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_untied_head_is_split(loss: str, mesh: str) -> None:
    run = case(loss).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["head.weight"].split_over == ("tp",)
    assert not large(run)


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_tied_head_is_split(loss: str, mesh: str) -> None:
    run = case(loss, tied=True).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["tokens.weight"].split_over == ("tp",)
    assert not large(run)


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("loss", LOSSES)
def test_vocabularies_that_do_not_divide(loss: str, mesh: str) -> None:
    for tied in (False, True):
        run = case(loss, 61, tied).check(mesh)
        assert run.error < EXACT, str(run)
        assert run.sharded.tensors["tokens.weight" if tied else "head.weight"].split_over == ("tp",)
        assert not large(run, 61) or "divergence" in loss


def lowered(run: Run) -> Counter[str]:
    """The runtime ops of a split vocabulary."""
    names = Counter(str(n.target) for n in run.sharded.graph.nodes if n.op == "call_function")
    return Counter({n: k for n, k in names.items() if n.startswith("fxpar.") and any(w in n for w in OWN)})


class Scored(nn.Module):
    """A router over experts of a size that could be a vocabulary's, and attention over keys, by softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.router = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, 2 * VOCAB)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = (f(x).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out((F.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).flatten(2))
        p = F.softmax(self.router(x), -1)
        best = p.topk(2, -1).indices
        return x * p.gather(-1, best).sum(-1, keepdim=True)


@pytest.mark.parametrize("mesh", ["tp2", "cp2", "cp2 tp2"])
def test_attention_and_routers_stay_as_they_are(mesh: str) -> None:
    torch.manual_seed(0)
    run = Case(Scored().double(), {"ids": torch.randint(0, VOCAB, (BATCH, LENGTH))}).check(mesh)
    assert run.error < EXACT, str(run)
    assert not [n for n in lowered(run) if "all_gather" not in n]
    assert run.sharded.tensors["router.weight"].split_over == ()


def test_the_collectives_of_a_loss() -> None:
    """Two inside of the logarithm (see tests/runtime/test_softmax.py), and one of a number for each token."""
    run = case("each token").check("tp2", "whole_sequence")
    assert run.error < EXACT
    assert lowered(run) == Counter({"fxpar.log_softmax.default": 1, "fxpar.gather.default": 1})
    (gathered,) = [n for n in run.sharded.graph.nodes if str(n.target) == "fxpar.gather.default"]
    reduced = [n for n in run.sharded.graph.nodes if str(n.target) == "fxpar.all_reduce.default"]
    assert [n.meta["val"].numel() for n in reduced if gathered in _before(n)] == [BATCH * LENGTH]


def _before(node: fx.Node) -> set[fx.Node]:
    """The values that a node is made of."""
    return {node}.union(*map(_before, node.all_input_nodes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["upcast", "upcast sum", "gathered"])
def test_logits_of_another_dtype_than_the_loss(loss: str, dtype: torch.dtype) -> None:
    """Rounding differs where sums are made in parts: half of the last digit of what is added."""
    torch.manual_seed(0)
    inputs = {
        "ids": torch.randint(0, VOCAB, (BATCH, LENGTH)),
        "labels": torch.randint(0, VOCAB, (BATCH, LENGTH)),
    }
    run = Case(Head(loss).to(dtype), inputs, wide=False).check("tp2")
    assert run.error < 8 * torch.finfo(dtype).eps, str(run)
    assert run.sharded.tensors["head.weight"].split_over == ("tp",)
