"""A run that is stopped and goes on, at the same mesh or another, makes the steps of one that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from fxpar import origin
from fxpar.capture.pyfile import load_file
from fxpar.emit.folder import write
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.rank import Rank

EXAMPLE = load_file(Path(__file__).parents[2] / "examples" / "nanogpt.py")
PLANS = {"tp2pp2": Plan(tp=2, pp=2), "pp4": Plan(pp=4), "tp4": Plan(tp=4), "dp2": Plan(dp=2), "one": Plan()}
#: 66 rows over 4 ranks are 17, 17, 17 and 15: the last rank's part ends in padding. Head and embedding are tied.
SIZES = {"vocabulary": 66, "length": 12, "layers": 4, "heads": 4, "width": 16}
BEFORE, AFTER = 3, 10

Make = Callable[[Rank], tuple[Optimizer, Any]]


def adamw(rank: Rank) -> tuple[Optimizer, Any]:
    """Two groups, as is usual."""
    named = list(rank.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=0.02, betas=(0.8, 0.95), amsgrad=True)
    return optimizer, LambdaLR(optimizer, [lambda n: 0.9**n, lambda n: 1 / (1 + n)])


def sgd(rank: Rank) -> tuple[Optimizer, Any]:
    optimizer = SGD(rank.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return optimizer, CosineAnnealingLR(optimizer, 20)


def adagrad(rank: Rank) -> tuple[Optimizer, Any]:
    return Adagrad(rank.parameters(), lr=0.05, initial_accumulator_value=0.1), None


def batch(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    text = torch.randint(SIZES["vocabulary"], (4, SIZES["length"] + 1), generator=draw)
    return {"idx": text[:, :-1].clone(), "targets": text[:, 1:].clone()}


@cache
def made(dropout: float) -> origin.Origin:
    torch.manual_seed(0)
    return origin.of_module(EXAMPLE.GPT(EXAMPLE.GPTConfig(**SIZES, dropout=dropout)).double(), batch(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], Path]:
    """The folder of a partition."""
    place = tmp_path_factory.mktemp("partitions")

    @cache
    def folder(name: str, dropout: float) -> Path:
        found = made(dropout)
        write(split(found.program, PLANS[name]), place / f"{name}-{dropout}", found.weights)
        return place / f"{name}-{dropout}"

    return folder


def run(
    name: str,
    folder: Path,
    make: Make,
    steps: int,
    *,
    start: Path | None = None,
    target: Path | None = None,
) -> list[list[float]]:
    """The losses of each rank over some steps, from the beginning or from a checkpoint."""

    def body(_: int, groups: Any) -> list[float]:
        rank = load(folder, groups, "cpu")
        optimizer, scheduler = make(rank)
        step = rank.restore(start, optimizer=optimizer, scheduler=scheduler) if start else 0
        losses = []
        for number in range(step, step + steps):
            rank.zero_grad()
            losses.append(rank.step(batch(number)).item())
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        if target is not None:
            rank.save(target, optimizer=optimizer, scheduler=scheduler, step=step + steps)
        return losses

    return list(simulate(PLANS[name].mesh, body))


@pytest.mark.parametrize("make", [adamw, sgd, adagrad])
def test_at_another_mesh(folders: Callable[[str, float], Path], make: Make, tmp_path: Path) -> None:
    """tp 2 x pp 2, then any other mesh and back: the losses of one process that was never stopped."""
    whole = run("one", folders("one", 0.0), make, BEFORE + AFTER)[0]
    first = run("tp2pp2", folders("tp2pp2", 0.0), make, BEFORE, target=tmp_path / "tp2pp2")
    assert first == [pytest.approx(whole[:BEFORE], rel=1e-9)] * 4
    for name in ("pp4", "tp4", "one"):
        target = tmp_path / name
        found = run(name, folders(name, 0.0), make, AFTER, start=tmp_path / "tp2pp2")
        assert found == [pytest.approx(whole[BEFORE:], rel=1e-9)] * len(found)
        run(name, folders(name, 0.0), make, 1, start=tmp_path / "tp2pp2", target=target)
        back = run("tp2pp2", folders("tp2pp2", 0.0), make, AFTER - 1, start=target)
        assert back == [pytest.approx(whole[BEFORE + 1 :], rel=1e-9)] * 4
