"""Unusual modules in float64: sizes coincide on purpose, and every loss stands behind the same small model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from shard_losses import BATCH, BY_NAME, LENGTH, VOCAB, Loss, entropy
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, FFN = 32, 8, 4, 64
Built: TypeAlias = tuple[nn.Module, dict[str, Any]]
Layer: TypeAlias = Callable[[], nn.Module]


def tokens(seed: int = 0) -> Tensor:
    """Token numbers."""
    return torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    """Targets, of which other numbers count in every part."""
    found = tokens(3)
    found[0, 2:7] = found[3, :1] = found[1, 5:] = -100
    return found


def normal(*shape: int) -> Tensor:
    """Random numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Attention(nn.Module):
    """Causal attention in several ways of writing it."""

    def __init__(self, how: str, groups: int = HEADS) -> None:
        super().__init__()
        self.how, self.groups = how, groups
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, groups * DEPTH), nn.Linear(WIDTH, groups * DEPTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norm(x)
        q, k, v = (f(y).view(BATCH, LENGTH, -1, DEPTH).transpose(1, 2) for f in (self.q, self.k, self.v))
        return q, *(t.repeat_interleave(HEADS // self.groups, 1) for t in (k, v))  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, self.how)(*self.heads(x))
        return x + self.out(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))

    def matmul(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(DEPTH)).masked_fill(later, float("-inf"))
        return scores.softmax(-1) @ v

    def einsum(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * DEPTH**-0.5
        scores = scores + torch.full((LENGTH, LENGTH), float("-inf")).triu(1).to(q.dtype)
        return torch.einsum("bhij,bhjd->bhid", F.softmax(scores, -1), v)

    def bmm(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(BATCH * HEADS, LENGTH, DEPTH) for t in (q, k, v))
        slopes = torch.arange(LENGTH)[None, None] * torch.arange(1, HEADS + 1)[:, None, None] / 10
        scores = torch.baddbmm(
            slopes.to(q.dtype).repeat(BATCH, 1, 1), q, k.transpose(1, 2), beta=0.1, alpha=0.5
        )
        return torch.bmm(scores.softmax(-1), v).view(BATCH, HEADS, LENGTH, DEPTH)

    def window(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at = torch.arange(LENGTH)
        mask = (at[:, None] >= at[None]) & (at[:, None] - at[None] < 3)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.elu(q) + 1, F.elu(k) + 1
        scale = torch.einsum("bhsd,bhd->bhs", q, k.sum(2))
        return torch.einsum("bhsd,bhde->bhse", q, torch.einsum("bhsd,bhse->bhde", k, v)) / scale[..., None]

    def sinks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sink = self.q.bias[:HEADS].view(1, HEADS, 1, 1).expand(BATCH, -1, LENGTH, 1)
        return torch.cat([q @ k.mT / 2, sink], -1).softmax(-1)[..., :-1] @ v


class Fused(nn.Module):
    """One projection for queries, keys and values, taken apart in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(self.norm(x))
        if self.how == "split":
            parts = [t.view(BATCH, LENGTH, HEADS, DEPTH) for t in y.split(WIDTH, -1)]
        elif self.how == "five":
            parts = list(y.view(BATCH, LENGTH, 3, HEADS, DEPTH).unbind(2))
        elif self.how == "slices":
            parts = [y[..., i * WIDTH : (i + 1) * WIDTH].view(BATCH, LENGTH, HEADS, DEPTH) for i in range(3)]
        else:
            parts = list(y.view(BATCH, LENGTH, HEADS, 3 * DEPTH).split(DEPTH, -1))
        q, k, v = (t.transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Feed(nn.Module):
    """A feed-forward block in several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.RMSNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, FFN * (2 if how == "gated" else 1)), nn.Linear(FFN, WIDTH)
        self.low, self.high = nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, FFN, bias=False)
        self.gain, self.attention = nn.Parameter(torch.ones(WIDTH)), Attention("matmul")
        self.up.weight.requires_grad_(how != "adapters")

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.how == "gated":
            gate, up = self.up(y).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)
        if self.how == "adapters":
            return x + self.down(F.gelu(self.up(y) + 2 * self.high(self.low(y))))
        if self.how == "parallel":
            return self.attention(x) + self.down(F.gelu(self.up(y)))
        if self.how == "shared":
            return (
                x
                + self.down(F.relu(self.up(self.down(F.relu(self.up(y))))))
                + y @ self.up.weight.T @ self.up.weight
            )
        hidden = self.up(y).mul(2).add_(1).relu_().clone()
        hidden[:, 0] = 0
        result = self.down(hidden)
        result += x
        result[..., 0:1].mul_(2)
        return result * self.gain


class Experts(nn.Module):
    """All experts on all tokens, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.up, self.down = nn.Parameter(normal(4, WIDTH, 48) / 8), nn.Parameter(normal(4, 48, WIDTH) / 8)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        gates = torch.zeros(BATCH, LENGTH, 4, dtype=x.dtype).scatter(-1, chosen, weights)
        hidden = torch.einsum("bsh,ehf->bsef", x, self.up).relu()
        return x + torch.einsum("bsef,efh,bse->bsh", hidden, self.down, gates)


class Mixer(nn.Module):
    """Tokens are mixed by a matrix, and by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.attention = (
            nn.LayerNorm(WIDTH),
            nn.Linear(LENGTH, LENGTH),
            Attention("window"),
        )
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        x = x + self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + F.silu(self.conv(x.transpose(1, 2))[..., :LENGTH]).transpose(1, 2)


class Language(nn.Module):
    """Embedding, positions, layers, head, loss."""

    def __init__(self, layer: Layer, loss: Loss = entropy, count: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers, self.norm = nn.ModuleList(layer() for _ in range(count)), nn.LayerNorm(WIDTH)
        self.head, self.loss = nn.Linear(WIDTH, VOCAB, bias=False), loss
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        x = self.tokens(ids) + self.positions(torch.arange(LENGTH))
        for layer in self.layers:
            x = layer(x)
        return self.loss(self.head(self.norm(x)), labels)


class Outputs(nn.Module):
    """A split axis, parameters, inputs and constants as outputs, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = (
            nn.Embedding(VOCAB, WIDTH),
            nn.Linear(WIDTH, FFN),
            nn.Linear(FFN, WIDTH),
        )

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Any]:
        hidden = F.relu(self.up(self.tokens(ids)))
        numbers = {
            "ids": ids,
            "counted": labels != -100,
            "at": torch.arange(LENGTH) + ids,
            "none": None,
            "three": 3,
        }
        weights = {"weight": self.up.weight, "twice": self.up.bias * 2, "table": self.tokens.weight.T}
        return {
            "hidden": hidden,
            "again": hidden,
            "sum": hidden.sum(-1),
            "y": self.down(hidden),
            **numbers,
            **weights,
        }


class Weights(nn.Module):
    """Weights are normalised, and penalised."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, FFN)
        self.down, self.head = nn.Linear(FFN, WIDTH), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = F.embedding(ids, F.normalize(self.tokens.weight, dim=-1))
        x = F.relu(F.linear(x, F.normalize(self.up.weight, dim=1)))
        x = F.linear(x, self.down.weight / self.down.weight.norm(dim=0))
        penalty = self.up.weight.square().sum() + self.head.weight.abs().mean() + self.tokens.weight.norm()
        return entropy(self.head(x), labels) + 0.01 * penalty


class Contrast(nn.Module):
    """Both sides of a batch against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer, self.out = (
            nn.Embedding(VOCAB, WIDTH),
            Attention("matmul"),
            nn.Linear(WIDTH, 16),
        )

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        a, b = (
            F.normalize(self.out(self.layer(self.tokens(t)).mean(1)), dim=-1)
            for t in (ids, labels.abs() % VOCAB)
        )
        target = torch.arange(BATCH)
        return F.cross_entropy(3 * a @ b.T, target) + F.cross_entropy(3 * b @ a.T, target)


class Images(nn.Module):
    """A convolution as a stem, and a first token that is no patch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, WIDTH, 4, stride=4), nn.Parameter(normal(1, 1, WIDTH))
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.head = nn.GroupNorm(4, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.relu(self.norm(self.stem(x))).flatten(2).transpose(1, 2)
        patches = torch.cat([self.first.expand(BATCH, -1, -1), patches], 1)
        mixed, weights = self.attend(patches, patches, patches)
        return F.cross_entropy(self.head(mixed[:, 0]), y), weights


class Normed(nn.Module):
    """A batch norm between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.down(F.relu(self.norm(self.up(x)))), y)


class Lookup(nn.Module):
    """An embedding with options, and a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCAB, WIDTH, **options), nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return entropy(self.head(self.tokens(ids % 5)), labels)


def text(make: Layer) -> Built:
    """A module that takes tokens and labels."""
    return make(), {"ids": tokens(), "labels": labels()}


def _language(layer: Layer, **options: Any) -> Callable[[], Built]:
    return partial(text, partial(Language, layer, **options))


def _images() -> Built:
    return Images(), {"x": normal(BATCH, 3, 16, 16), "y": torch.arange(4)}


def _normed() -> Built:
    return Normed(), {"x": normal(8, 12), "y": torch.arange(8) % 6}


_PLAIN = partial(Feed, "gated")

MODULES: Mapping[str, Callable[[], Built]] = {
    "attention as matmul": _language(partial(Attention, "matmul")),
    "attention as einsum": _language(partial(Attention, "einsum")),
    "attention as bmm": _language(partial(Attention, "bmm")),
    "grouped attention as matmul": _language(partial(Attention, "matmul", 4)),
    "sliding window": _language(partial(Attention, "window")),
    "linear attention": _language(partial(Attention, "linear")),
    "attention sinks": _language(partial(Attention, "sinks")),
    "fused and split": _language(partial(Fused, "split")),
    "fused as five dims": _language(partial(Fused, "five")),
    "fused and sliced": _language(partial(Fused, "slices")),
    "fused by heads": _language(partial(Fused, "heads")),
    "gated": _language(_PLAIN),
    "adapters on a frozen weight": _language(partial(Feed, "adapters")),
    "parallel residual blocks": _language(partial(Feed, "parallel")),
    "a weight used twice": _language(partial(Feed, "shared")),
    "in place": _language(partial(Feed, "in place")),
    "experts that are all run": _language(Experts),
    "mixed tokens": _language(Mixer),
    "tied": _language(partial(Attention, "matmul"), tied=True),
    "outputs of all kinds": partial(text, Outputs),
    "weights that are normalised": partial(text, Weights),
    "a contrastive loss": partial(text, Contrast),
    "a convolution as stem": _images,
    "an embedding with padding": partial(text, partial(Lookup, padding_idx=3)),
}


LOSSES: Mapping[str, Callable[[], Built]] = {
    name: _language(_PLAIN if number % 2 else partial(Attention, "matmul"), loss=loss, count=1)
    for number, (name, loss) in enumerate(BY_NAME.items())
}

_FURTHER: Mapping[str, Callable[[], Built]] = {
    "batch norm": _normed,
    "rows that are counted by data": _language(_PLAIN, loss=lambda x, y: x[y != -100].mean()),
    "one tensor twice": _language(_PLAIN, loss=lambda x, _: torch.tensordot(x, x, dims=([0, 1], [0, 1]))),
    "gradients scaled by frequency": partial(text, partial(Lookup, scale_grad_by_freq=True)),
    "sparse gradients": partial(text, partial(Lookup, sparse=True)),
}


def build(name: str) -> Built:
    """A module of the tables in float64 with its inputs, the same weights at each call."""
    torch.manual_seed(0)
    module, inputs = {**MODULES, **LOSSES, **_FURTHER}[name]()
    return module.double().train(), inputs
