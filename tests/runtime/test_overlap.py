"""Weights of which ranks have some rows alike, from partition to saved checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

import fxpar
from fxpar.capture.capture import capture
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.weights import Box, TensorWeights
from fxpar.emit.folder import write
from fxpar.explanation import explain
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.save import save
from fxpar.shard.overlap import Overlap

WIDTH, DEPTH, RANKS = 16, 4, 4
BATCH = {"x": torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
FUSED = ("qkv.weight", "qkv.bias")


class Attention(nn.Module):
    """Four heads of queries, and one of keys and values behind them in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, WIDTH + 2 * DEPTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).split([WIDTH, DEPTH, DEPTH], -1)
        q, k, v = (part.unflatten(-1, (-1, DEPTH)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2)).square().mean()


def model() -> nn.Module:
    torch.manual_seed(0)
    return Attention().double()


@pytest.fixture(scope="module")
def partition() -> Partition:
    return split(capture(model(), (), BATCH), Plan(tp=RANKS))


@pytest.fixture(scope="module")
def folder(partition: Partition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("overlap") / "out"
    write(partition, place, TensorWeights(model().state_dict()))
    return place


def whole(folder: Path, name: str) -> torch.Tensor:
    """A tensor put together from all files; what several of them hold has to be the same in each."""
    tensor = Index.read(folder).tensors[name]
    found = torch.full(tensor.shape, torch.nan, dtype=torch.float64)
    for file, parts in tensor.files.items():
        with safe_open(folder / file, framework="pt") as opened:
            held = opened.get_tensor(name)
        for part in parts:
            place, own = Box(part.offsets, part.sizes).slices, held[Box(part.local, part.sizes).slices]
            known = ~found[place].isnan()
            assert torch.equal(found[place][known], own[known])
            found[place] = own
    return found


def test_files_hold_what_ranks_have(folder: Path) -> None:
    state = model().state_dict()
    for name in (*FUSED, "out.weight", "out.bias"):
        assert torch.equal(whole(folder, name), state[name])
    rows = [
        part.offsets[0]
        for part in Index.read(folder).tensors["qkv.weight"].files["model-pp0-tp1.safetensors"]
    ]
    assert rows == [DEPTH, WIDTH]


def test_the_manifest_tells_of_them(folder: Path, partition: Partition) -> None:
    manifest = Manifest.read(folder)
    assert manifest.tensors == partition.manifest.tensors
    for name in FUSED:
        assert manifest.tensors[name].overlaps == (Overlap("tp", 0, ((DEPTH, 2 * DEPTH),)),)
    assert manifest.tensors["out.weight"].overlaps == ()
    assert "tp" in manifest.groups


def test_explained(partition: Partition) -> None:
    (found,) = explain(partition, "qkv.weight")
    assert found.facts["gradient"] == "summed over tp (dim 0: 4 to 11) once a step"
    assert found.facts["placement"] == "Shard(0, heads) over tp"


def test_what_ranks_have_alike_stays_alike(folder: Path, tmp_path: Path) -> None:
    reference = model()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        reference(**BATCH).backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
        optimizer.step()

    def run(_: int, groups: Groups) -> torch.Tensor:
        rank = load(folder, groups, "cpu")
        mine = torch.optim.AdamW(rank.parameters(), lr=0.1, eps=1e-3)
        for _ in range(3):
            mine.zero_grad()
            rank.step(BATCH)
            found = rank.clip_gradients_(0.01)
            mine.step()
        save(rank, tmp_path / "saved")
        return found

    for found in simulate(Manifest.read(folder).grid, run):
        torch.testing.assert_close(found, norm, rtol=1e-12, atol=0)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(whole(tmp_path / "saved", name), tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("plan", [Plan(tp=2), Plan(tp=4), Plan(dp=2, tp=2), Plan(tp=2, microbatches=2)])
def test_verify(plan: Plan) -> None:
    report = fxpar.verify(model(), kwargs=BATCH, plan=plan, simulate=True)
    assert report.ok, report.text()
    errors = (report.loss_error, report.gradient_error, report.norm_error, report.parameter_error)
    assert max(errors) < 1e-11
    assert 0.7 < report.sharded_fraction < 0.9
