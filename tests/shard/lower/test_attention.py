"""Attention masks under a split sequence: causal, windows, padding, packed documents, none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from shard_case import Case
from shard_models import WIDTH, tokens
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxpar.shard.sharded import Sharded

LENGTH = 16
DOCUMENTS = torch.tensor([[0] * 3 + [1] * 13, [0] * 16, [0] + [1] * 7 + [2] * 8, [0] * 12 + [1] * 4])


def _causal() -> Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


def _window() -> Tensor:
    at = torch.arange(LENGTH)
    return (at[:, None] >= at[None]) & (at[:, None] - at[None] < 5)


def _prefix() -> Tensor:
    at = torch.arange(LENGTH)
    return (at[None] <= at[:, None]) | (at[None] < 4)


def _additive() -> Tensor:
    return torch.full((LENGTH, LENGTH), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)


def _slopes() -> Tensor:
    at = torch.arange(LENGTH, dtype=torch.float64)
    return -(at[:, None] - at).abs() * 2.0 ** -torch.arange(1, 9)[:, None, None]


MASKS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda _: None,
    "full": lambda _: torch.ones(LENGTH, LENGTH, dtype=torch.bool),
    "causal": lambda _: _causal(),
    "additive causal": lambda _: _additive(),
    "window": lambda _: _window(),
    "prefix": lambda _: _prefix(),
    "of each head": lambda _: _slopes(),
    "padding": lambda seen: (seen >= 0)[:, None, None, :] & (torch.arange(LENGTH) < 12),
    "packed": lambda seen: ((seen[:, :, None] == seen[:, None]) & _causal())[:, None],
}


class Attending(nn.Module):
    """One layer of attention with a mask."""

    def __init__(self, mask: Callable[[Tensor], Tensor | None], causal: bool = False) -> None:
        super().__init__()
        self.mask, self.causal, self.tokens = mask, causal, nn.Embedding(96, WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, ids: Tensor, documents: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = (f(x).view(4, LENGTH, 8, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(documents), is_causal=self.causal)
        return x + self.out(y.transpose(1, 2).flatten(2))


@cache
def case(name: str) -> Case:
    """A layer with a mask of the table; `is_causal` without a mask."""
    torch.manual_seed(0)
    model = Attending(MASKS["none" if name == "is_causal" else name], name == "is_causal")
    return Case(model.double(), {"ids": tokens(), "documents": DOCUMENTS})


def attention(sharded: Sharded) -> fx.Node:
    return next(n for n in sharded.graph.nodes if "scaled_dot_product" in str(n.target))


@pytest.mark.parametrize("mesh", ["tp2", "cp2", "cp4", "dp2 cp2 tp2"])
@pytest.mark.parametrize("name", [*MASKS, "is_causal"])
def test_exact(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert run.error < 1e-9, str(run)


@pytest.mark.parametrize("name", ["causal", "additive causal", "is_causal"])
def test_with_whole_queries_a_causal_mask_is_not_made(name: str) -> None:
    sharded = case(name).shard("tp2")
    assert attention(sharded).args[3:] == (None, 0.0, True)
    assert not [node for node in sharded.graph.nodes if "tril" in node.name or "triu" in node.name]


@pytest.mark.parametrize("name", ["full", "none"])
def test_a_full_mask_is_not_made(name: str) -> None:
    assert len(attention(case(name).shard("tp2")).args) == 3


@pytest.mark.parametrize("name", ["window", "prefix", "padding", "packed"])
@pytest.mark.parametrize("mesh", ["tp2", "cp2"])
def test_other_masks_stay(name: str, mesh: str) -> None:
    node = attention(case(name).shard(mesh))
    assert isinstance(node.args[3], fx.Node)
    assert len(node.args) < 6 or not node.args[5]


@pytest.mark.parametrize("name", ["causal", "is_causal"])
def test_split_queries_see_their_rows_of_the_causal_mask(name: str) -> None:
    run = case(name).check("cp2")
    node = attention(run.sharded)
    mask = node.args[3]
    assert isinstance(mask, fx.Node)
    for number, rank in enumerate(run.ranks):
        rows = slice(8 * number, 8 * number + 8)
        allowed = rank.values[mask.name].reshape(-1, 8, LENGTH)[-1]
        assert torch.equal(allowed.to(torch.bool), _causal()[rows])
