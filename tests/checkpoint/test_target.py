"""A checkpoint for another mesh, without the model: the same boxes as of a partition for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fxpar
from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.target import target
from fxpar.emit.product import held
from fxpar.emit.shards import index
from fxpar.errors import CheckpointError

WIDTH, HEADS, KEYS, DEPTH = 16, 8, 2, 4


class Block(nn.Module):
    """Attention with fewer heads of keys, in one fused weight, and a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KEYS) * DEPTH)
        self.out = nn.Linear(HEADS * DEPTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(x)).unflatten(-1, (-1, DEPTH)).transpose(1, 2)
        q, k, v = qkv.split([HEADS, KEYS, KEYS], dim=1)
        made = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(made.transpose(1, 2).flatten(2))
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * value)


class Model(nn.Module):
    """A small decoder."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def written(vocabulary: int = 48, **plan: Any) -> Index:
    ids = torch.randint(0, vocabulary, (4, 8))
    made = fxpar.partition(Model(vocabulary), fxpar.Plan(**plan), {"ids": ids, "labels": ids})
    return index(made, held(made), "model")


ONE = written()


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 4}, {"tp": 8}, {"tp": 2, "cp": 2, "dp": 2}])
def test_boxes_are_those_of_a_partition(sizes: dict[str, int]) -> None:
    made, wanted = target(ONE, sizes), written(**sizes)
    for name, tensor in wanted.tensors.items():
        found = made.tensors[name]
        assert [found.files[f] for f in made.ranks] == [tensor.files[f] for f in wanted.ranks], name
    assert target(made, {}).tensors == target(ONE, {}).tensors


def test_a_vocabulary_that_does_not_divide() -> None:
    """The last rank holds less."""
    made, wanted = target(written(51), {"tp": 2}), written(51, tp=2)
    for name in ("table.weight", "head.weight"):
        assert made.tensors[name].files == wanted.tensors[name].files
    assert [part.sizes for (part,) in made.tensors["table.weight"].files.values()] == [(26, 16), (25, 16)]


@pytest.mark.parametrize("dim", ["cat[vocab=9, vocab=9]", "(2 vocab=9)", "cat[vocab=9, 9]"])
def test_parts_that_would_have_holes(dim: str) -> None:
    """A shorter part in the middle of what a rank has."""
    part = {"a": (Part((0,), (18,), (0,)),)}
    index = replace(ONE, tensors={"w": Indexed("F32", (18,), (dim,), {}, part)}, rows={"vocab": ("tp~",)})
    with pytest.raises(
        CheckpointError, match="`w`: vocab = 9 does not divide over tp = 2: tp may be 1, 3 or 9"
    ):
        target(index, {"tp": 2})
    assert len(target(index, {"tp": 3}).tensors["w"].files) == 3


def test_stages_and_files() -> None:
    made = target(ONE, {"pp": 2, "tp": 2})
    assert made.ranks == tuple(f"model-pp{p}-tp{t}.safetensors" for p in range(2) for t in range(2))
    assert made.tensors["table.weight"].at == (0,)
    assert [made.tensors[f"blocks.{n}.norm.weight"].at for n in range(3)] == [(1,), (2,), (3,)]
    assert made.tensors["head.weight"].at == (4,)
    assert {f[:9] for f in made.tensors["head.weight"].files} == {"model-pp1"}
    assert made.mesh == {"pp": 2, "dp": 1, "ep": 1, "cp": 1, "tp": 2}
    assert made.tensors["blocks.0.qkv.weight"].placement == {"tp": "Shard(0, heads)"}
    assert made.tensors["blocks.0.norm.weight"].placement == {"tp": "Replicate"}


def test_what_does_not_divide() -> None:
    with pytest.raises(CheckpointError) as error:
        target(ONE, {"tp": 3})
    assert str(error.value).splitlines() == [
        "the checkpoint cannot be split so",
        "  `blocks.0.qkv.weight` and 8 more: heads = 2 does not divide over tp = 3: tp may be 1 or 2",
        "  `blocks.0.up.weight` and 8 more: ffn = 32 does not divide over tp = 3: tp may be 1, 2, 4, 8, 16 or 32",
    ]
    with pytest.raises(CheckpointError, match="heads = 2 and groups = 4 do not divide over tp = 16"):
        target(ONE, {"tp": 16})
    with pytest.raises(CheckpointError, match="6 stages need as many layers, the checkpoint has 5"):
        target(ONE, {"pp": 6})
    with pytest.raises(CheckpointError, match="`xp` is no mesh dim: those are pp, dp, ep, cp, tp"):
        target(ONE, {"xp": 2})
