"""A model whose experts are a loop over those that were chosen, which no graph can follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, VOCAB, COUNT = 32, 64, 4


class Experts(nn.Module):
    """Each token's sum over its experts, times a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(COUNT, 2 * WIDTH, WIDTH) / 8)
        self.down = nn.Parameter(torch.randn(COUNT, WIDTH, 2 * WIDTH) / 8)
        self.register_buffer("scale", torch.full((1,), 1.5))

    def forward(self, x: Tensor, index: Tensor, *, weights: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.zeros_like(x)
        for expert in index.unique().tolist():
            rows, place = torch.where(index == expert)
            hidden = F.relu(x[rows] @ self.up[expert].t())
            made = made.index_add(0, rows, hidden @ self.down[expert].t() * weights[rows, place, None])
        return made * self.scale, weights.square().sum(-1)


class Layer(nn.Module):
    """A router with experts, and a plain block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.router, self.experts = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, COUNT), Experts()
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.norm(x).flatten(0, 1)
        weights, index = self.router(flat).softmax(-1).topk(2)
        made, squares = self.experts(flat, index, weights=weights)
        x = x + made.view(x.shape)
        return x + self.down(F.relu(self.up(x))), squares.mean()


class Model(nn.Module):
    """Two layers, and a loss that both outputs of the experts take part in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(2)])
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, idx: Tensor, targets: Tensor) -> dict[str, Tensor]:
        x, extra = self.tokens(idx), 0.0
        for layer in self.layers:
            x, squares = layer(x)
            extra = extra + squares
        loss = F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())
        return {"loss": loss + 0.01 * extra}


def example_inputs() -> dict[str, Tensor]:
    """A batch of four."""
    idx = torch.randint(0, VOCAB, (4, 8), generator=torch.Generator().manual_seed(0))
    return {"idx": idx, "targets": idx.flip(1)}
