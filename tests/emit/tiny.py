"""A small decoder for golden texts: rope tables shared by its layers, grouped heads, a tied head, a buffer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * width // heads, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        size = width // self.heads
        sizes = [self.heads * size, self.kv_heads * size, self.kv_heads * size]
        q, k, v = (part.unflatten(2, (-1, size)).transpose(1, 2) for part in self.qkv(x).split(sizes, dim=-1))
        q, k = (
            y * cos + torch.cat([-y[..., size // 2 :], y[..., : size // 2]], dim=-1) * sin for y in (q, k)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, kv_heads)
        self.norm_2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x), cos, sin)
        return x + self.feed_forward(self.norm_2(x)) * self.scale


class Rope(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        frequencies = 1 / 100.0 ** (torch.arange(0, size, 2) / size)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self.frequencies.device, dtype=self.frequencies.dtype)
        angles = torch.outer(positions, self.frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


class Decoder(nn.Module):
    def __init__(self, layers: int = 3, width: int = 16, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, width)
        self.rope = Rope(width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 32, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tokens(ids)
        cos, sin = self.rope(ids.shape[1])
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), logits
