"""Constant masks are recognised by their values alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxpar.capture import capture, masks

LENGTH = 6
Mask = Callable[["Attention", Tensor], Tensor | None]


class Attention(nn.Module):
    def __init__(self, mask: Mask, keys: int = LENGTH) -> None:
        super().__init__()
        self.mask, self.keys = mask, keys
        self.linear = nn.Linear(4, 4)
        self.register_buffer("tril", torch.tril(torch.ones(8, 8, dtype=torch.bool)))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.linear(x)[:, None], x[:, None, : self.keys]
        return F.scaled_dot_product_attention(q, k, k, attn_mask=self.mask(self, x))


def positions() -> tuple[Tensor, Tensor]:
    return torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None, :]


def broadcast(_: Attention, x: Tensor) -> Tensor:
    rows, columns = positions()
    batch = torch.arange(x.shape[0])[:, None, None, None] >= 0
    return (batch & (columns <= rows)[None, None]).expand(x.shape[0], 1, -1, -1)


def additive(_: Attention, x: Tensor) -> Tensor:
    rows, columns = positions()
    return torch.where(columns > rows, torch.finfo(x.dtype).min, 0.0)


def infinite(_: Attention, __: Tensor) -> Tensor:
    return torch.full((LENGTH, LENGTH), float("-inf")).triu(1)


def buffer(self: Attention, _: Tensor) -> Tensor:
    return self.tril[None, None, :LENGTH, :LENGTH]


def full(_: Attention, __: Tensor) -> Tensor:
    return torch.ones(1, LENGTH, dtype=torch.bool)


def zeros(_: Attention, x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], 1, LENGTH, LENGTH)


def window(_: Attention, __: Tensor) -> Tensor:
    rows, columns = positions()
    return (columns <= rows) & (rows - columns < LENGTH - 1)


def large_but_finite(_: Attention, __: Tensor) -> Tensor:
    return torch.full((LENGTH, LENGTH), -1e9).triu(1)


def of_input(_: Attention, x: Tensor) -> Tensor:
    rows, columns = positions()
    return (columns <= rows) & (x[:, None, :1, :1] == x[:, None, :1, :1])


def of_parameter(self: Attention, _: Tensor) -> Tensor:
    return self.linear.weight.sum() * torch.zeros(LENGTH, LENGTH)


def random(_: Attention, __: Tensor) -> Tensor:
    return torch.rand(LENGTH, LENGTH) >= 0


def of_sample(_: Attention, x: Tensor) -> Tensor:
    """Causal for the first sample, and not for the second."""
    rows, columns = positions()
    return (columns <= rows)[None, None] | (torch.arange(x.shape[0])[:, None, None, None] > 0)


CASES: list[tuple[Mask, str | None]] = [
    (broadcast, "causal"),
    (additive, "causal"),
    (infinite, "causal"),
    (buffer, "causal"),
    (full, "full"),
    (zeros, "full"),
    (lambda *_: None, "full"),
    (window, None),
    (of_sample, None),
    (large_but_finite, None),
    (of_input, None),
    (of_parameter, None),
    (random, None),
]


def mark(model: nn.Module) -> str | None:
    (node,) = [
        node
        for node in capture(model, (torch.randn(2, LENGTH, 4),)).graph.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]
    found: str | None = node.meta.get("mask")
    return found


@pytest.mark.parametrize(("mask", "kind"), CASES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("piece", [1, 2**24])
def test_by_value(mask: Mask, kind: str | None, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "PIECE", piece)
    assert mark(Attention(mask)) == kind


def same_in_every_sample(_: Attention, x: Tensor) -> Tensor:
    rows, columns = positions()
    samples = torch.zeros(x.shape[0], LENGTH, dtype=torch.int64)
    return (columns <= rows) & (samples[:, None, :, None] == samples[:, None, None, :])


def test_samples_with_one_mask_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    kinds = masks._kinds
    monkeypatch.setattr(masks, "_kinds", lambda part, box: (looked.append(box), kinds(part, box))[1])
    assert mark(Attention(same_in_every_sample)) == "causal"
    assert len(looked) == 1


def test_fewer_keys_than_queries_are_not_causal() -> None:
    assert mark(Attention(lambda *_: torch.ones(LENGTH, 4, dtype=torch.bool).tril(), keys=4)) is None
    assert mark(Attention(lambda *_: torch.ones(LENGTH, 4, dtype=torch.bool), keys=4)) == "full"


def test_masks_over_the_limit_and_without_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        assert mark(Attention(buffer)) is None
    monkeypatch.setattr(masks, "LIMIT", LENGTH)
    assert mark(Attention(infinite)) is None


class Causal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:, 0], x[:, 1], x[:, 1], is_causal=True)


def test_is_causal() -> None:
    assert "causal" in [
        node.meta.get("mask") for node in capture(Causal(), (torch.randn(2, 3, 4, 4),)).graph.nodes
    ]
