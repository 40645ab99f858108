"""Values that move along a split dim, or overwrite a part of it: the dim is split all the same elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from shard_case import Case
from shard_models import FFN, VOCAB, WIDTH, tokens
from torch import Tensor, nn
from torch.nn import functional as F

EXACT = 1e-9


class Mixer(nn.Module):
    """Attention, and a feed-forward with something done to each sequence between its weights."""

    def __init__(self, moved: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.moved = moved
        self.tokens, self.norm = nn.Embedding(VOCAB, WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.up, self.down = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = (made(x).unflatten(-1, (8, -1)).transpose(1, 2) for made in (self.q, self.k, self.v))
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.down(self.moved(self.up(self.moved(self.norm(x))).relu()))


def before(x: Tensor) -> Tensor:
    return x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def mixed(x: Tensor) -> Tensor:
    return x.lerp(torch.cat([x[:, :2], x[:, :-2].tanh()], 1), 0.3)


def rolled(x: Tensor) -> Tensor:
    return x * torch.cat([x[:, 1:], x[:, :1]], 1)


def added(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 1:] += x[:, :-1]
    return y


def written(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 2] = x[:, 5]
    y[:, 7:9] = 0.5
    return y


def alternating(x: Tensor) -> Tensor:
    y = x * 1
    y[..., ::2] = x[..., 1::2]
    y[:, 1::2] *= 2
    return y


MOVES = [before, mixed, rolled, added, written, alternating]


@pytest.mark.parametrize("mesh", ["cp2", "tp2", "cp2 tp2", "dp2"])
@pytest.mark.parametrize("moved", MOVES)
def test_exact(moved: Callable[[Tensor], Tensor], mesh: str) -> None:
    torch.manual_seed(0)
    run = Case(Mixer(moved).double(), {"ids": tokens()}).check(mesh)
    assert run.error < EXACT, str(run)
    if "tp" in mesh:
        assert run.sharded.tensors["up.weight"].split_over == ("tp",)


class Halves(nn.Module):
    """The two halves of the batch, exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)

    def forward(self, ids: Tensor, other: Tensor) -> Tensor:
        x = self.tokens(ids)
        turned = x.view(2, -1, *x.shape[1:]).flip(0).reshape(x.shape)
        return turned.square().sum() + (turned * self.tokens(other)).sum()


class Reordered(nn.Module):
    """Logits of which every second stands behind the others."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, other: Tensor) -> Tensor:
        logits = self.head(self.tokens(ids))
        logits = torch.cat([logits[..., ::2], logits[..., 1::2]], -1)
        return F.cross_entropy(logits.flatten(0, 1), other.flatten())


@pytest.mark.parametrize("build", [Halves, Reordered])
@pytest.mark.parametrize("mesh", ["dp2", "tp2", "tp4"])
def test_other_factors_of_a_dim(build: type[nn.Module], mesh: str) -> None:
    torch.manual_seed(0)
    run = Case(build().double(), {"ids": tokens(), "other": tokens(1)}).check(mesh)
    assert run.error < EXACT, str(run)
