"""A small GPT in plain PyTorch: nothing here knows that it will be split over devices.

The architecture is GPT-2's (Radford et al. 2019): learned positions, normalisation before each block, one
projection for queries, keys and values, a GELU feed-forward, and a head that shares the embedding's weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a model. `width` is divided evenly among `heads`; `length` is the longest sequence."""

    vocabulary: int = 512
    length: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64
    dropout: float = 0.0
    bias: bool = True


class Attention(nn.Module):
    """Causal self-attention: [batch, sequence, width] to the same."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.proj = nn.Linear(config.width, config.width, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, width = x.shape
        q, k, v = (
            part.view(batch, sequence, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.drop(self.proj(y.transpose(1, 2).reshape(batch, sequence, width)))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.proj = nn.Linear(4 * config.width, config.width, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.proj(F.gelu(self.up(x))))


class Block(nn.Module):
    """One layer: attention and feed-forward, each normalised before and added to what came in."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.width, bias=config.bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class GPT(nn.Module):
    """A language model over token numbers."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw weights as GPT-2 does: 0.02, and less by 1/sqrt(2 layers) where a block adds to the stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / sqrt(2 * self.config.layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits [batch, sequence, vocabulary] for tokens [batch, sequence], and the mean loss.

        The loss is None without targets; a target of -1 is not counted.
        """
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.drop(self.tokens(idx) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)
        return logits, loss


def build() -> GPT:
    """Return a model small enough for a test, with weights from torch's random state."""
    return GPT(GPTConfig())


def example_inputs() -> dict[str, Tensor]:
    """Return a batch of 4 sequences of 64 tokens and the tokens that follow them."""
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(GPTConfig.vocabulary, (4, GPTConfig.length + 1), generator=draw)
    return {"idx": text[:, :-1].clone(), "targets": text[:, 1:].clone()}
