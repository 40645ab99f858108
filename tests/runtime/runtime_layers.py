"""A model of equal layers, and a step of it before and after its layers are compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fxpar.runtime.rank import Rank

LAYERS, WIDTH = 4, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 32, bias=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def decoder() -> tuple[Decoder, dict[str, Tensor]]:
    """The same model and batch in every process, in float64."""
    torch.manual_seed(0)
    ids = torch.randint(32, (2, 6))
    return Decoder().double(), {"ids": ids, "targets": ids.roll(1, 1)}


def assert_compiles_alike(rank: Rank, batch: dict[str, Any], backend: str) -> None:
    """A step and an evaluation, first as they are, then compiled: one graph for all layers, and the same numbers."""
    loss, wanted = rank.step(batch), {n: p.grad.clone() for n, p in rank.named_parameters()}
    counter = CompileCounterWithBackend(backend)
    rank.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        rank.zero_grad()
        torch.testing.assert_close(rank.step(batch), loss, rtol=1e-12, atol=0)
        found = {n: p.grad for n, p in rank.named_parameters()}
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert counter.frame_count == 1
    torch.testing.assert_close(rank.evaluate(batch)[0], loss, rtol=1e-12, atol=0)
    assert counter.frame_count == 2  # once more, without gradients
