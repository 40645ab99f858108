"""Losses and other functions of logits [batch, sequence, vocabulary] and labels, usual and unusual ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH, LENGTH, VOCAB = 4, 8, 64
Loss: TypeAlias = Callable[[Tensor, Tensor], Any]


def entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The loss of most models."""
    return F.cross_entropy(logits.reshape(-1, VOCAB), target.reshape(-1), **options)


def _several(x: Tensor, y: Tensor) -> dict[str, Any]:
    best = x.argmax(-1)
    return {
        "loss": entropy(x, y),
        "logits": x,
        "best": best,
        "right": best == y,
        "share": (best == y).double().mean(),
    }


def _zloss(x: Tensor, y: Tensor) -> Tensor:
    return entropy(x, y) + 0.01 * x.logsumexp(-1).square().mean()


def _mean_of_counted(x: Tensor, y: Tensor) -> Tensor:
    each = entropy(x, y, reduction="none").view(BATCH, LENGTH)
    return (each * (y != -100)).sum() / (y != -100).sum()


def _gathered(x: Tensor, y: Tensor) -> Tensor:
    found = x.log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return -(found * (y != -100)).sum(1)


def _of_sums(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    total, rows = x.sum(), x.sum((0, 1))
    rounded = ((rows * 10).long(), rows > 0, (x > 0).sum(1))
    return total + 1, 1 - total, total**2, rows * x.mean((0, 1)), rows.abs(), rows / 2, 2 / rows, *rounded


def _of_partials(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    rows = x.sum(1)
    added = (rows + torch.arange(VOCAB), rows - rows.detach() / 2, torch.add(rows, rows.abs(), alpha=3))
    joined = (torch.cat([rows, rows.abs()], -1), torch.stack([rows, torch.ones_like(rows)]))
    return *added, *joined, F.pad(rows, (1, 1), value=3.0), rows[torch.tensor([2, 0])], x + rows[:, None]


def _views(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    halves = (x.view(BATCH, LENGTH // 2, 2, VOCAB).mean(2), x.view(BATCH, 2, LENGTH // 2, VOCAB).mean(2))
    mixed = (
        x.view(BATCH, LENGTH // 2, 2 * VOCAB),
        x.transpose(0, 1).reshape(-1, VOCAB),
        x.transpose(1, 2).flatten(1),
    )
    repeated = (x.repeat(2, 1, 3), x.repeat_interleave(2, 1), x.unfold(1, 2, 2))
    return *halves, *mixed, *repeated, x[:, ::2], x[:, 1::3], x[:, -1], x.flip(1), x.roll(1, 1)


def _along(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    sorted_, top = x.sort(1), x.topk(3, -1)
    statistics = (x.var(1), x.std(), x.norm(dim=(0, 1)), x.logsumexp(1), x.amax(1), x.cumsum(1), x.prod(-1))
    normed = (
        F.layer_norm(x, [LENGTH, VOCAB]),
        x.softmax(1),
        x.softmax(0),
        F.instance_norm(x.transpose(1, 2)),
    )
    return sorted_.values, sorted_.indices, top.values, top.indices, *statistics, *normed, x.median(1).values


def _products(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    square = x @ x.transpose(1, 2)
    cut = (square.tril(), x.triu(1), torch.diagonal(square, dim1=1, dim2=2), torch.einsum("bss->bs", square))
    flat = x.reshape(-1, VOCAB)
    return (
        *cut,
        square,
        flat.T @ flat,
        torch.einsum("bsh,bth,bt->bst", x, x, x[..., 0]),
        torch.einsum("bsh->s", x),
    )


def _written(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    at = y.clamp(min=0)
    zeros = torch.zeros(VOCAB, VOCAB, dtype=x.dtype)
    added = (zeros.index_add(0, at.view(-1), x.view(-1, VOCAB)), zeros[:BATCH].scatter_add(1, at, x[..., 0]))
    put = x.index_put((torch.tensor([0, 1]), torch.tensor([2, 3])), torch.zeros((), dtype=x.dtype))
    return *added, put, x[torch.arange(BATCH), (y != -100).sum(1) - 1], (x * F.one_hot(at, VOCAB)).sum(-1)


def _complex(x: Tensor, _: Tensor) -> Tensor:
    angles = torch.arange(LENGTH, dtype=x.dtype)[:, None] * torch.arange(VOCAB // 2)
    turned = torch.view_as_complex(x.view(BATCH, LENGTH, -1, 2)) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(2)


def _other_losses(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    third = torch.full_like(x, 0.3)
    plain = (F.mse_loss(x, third), F.smooth_l1_loss(x, third, reduction="sum"), F.huber_loss(x, third))
    logits = (
        F.binary_cross_entropy_with_logits(x, third),
        F.kl_div(x.log_softmax(-1), third, reduction="batchmean"),
    )
    return *plain, *logits, F.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1)


_WEIGHTS = torch.linspace(0.5, 2, VOCAB, dtype=torch.float64)

BY_NAME: Mapping[str, Loss] = {
    "sum": partial(entropy, reduction="sum"),
    "none": partial(entropy, reduction="none"),
    "label smoothing": partial(entropy, label_smoothing=0.1),
    "class weights": lambda x, y: entropy(x, y, weight=_WEIGHTS, label_smoothing=0.2),
    "another index to ignore": lambda x, y: entropy(x, y.clamp(min=0), ignore_index=0),
    "classes second": lambda x, y: F.cross_entropy(x.transpose(1, 2), y),
    "shifted": lambda x, y: entropy(x[:, :-1], y[:, 1:]),
    "nothing counts on half of the ranks": lambda x, y: entropy(
        x, torch.where(torch.arange(BATCH)[:, None] < 2, y, torch.full_like(y, -100))
    ),
    "probabilities": lambda x, y: F.cross_entropy(
        x.view(-1, VOCAB), F.one_hot(y.clamp(min=0), VOCAB).to(x).view(-1, VOCAB)
    ),
    "two losses": lambda x, y: entropy(x, y) + 0.1 * entropy(x, y.clamp(min=0), reduction="sum"),
    "negative log likelihood": lambda x, y: F.nll_loss(
        x.log_softmax(-1).view(-1, VOCAB), y.view(-1), weight=_WEIGHTS
    ),
    "log z": _zloss,
    "mean of those that count": _mean_of_counted,
    "gathered": _gathered,
    "several outputs": _several,
    "perplexity": lambda x, y: (entropy(x, y), entropy(x, y).exp()),
    "sums and means": lambda x, _: (x.sum(), x.mean(), x.square().mean(), x.mean(1), x.amax(-1), x.max()),
    "what is made of sums": _of_sums,
    "what is made of partial sums": _of_partials,
    "views": _views,
    "along a dim": _along,
    "products": _products,
    "written by number": _written,
    "complex numbers": _complex,
    "other losses": _other_losses,
}
