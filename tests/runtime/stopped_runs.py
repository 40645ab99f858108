"""Runs of a small model that are stopped and go on: partitions, optimizers, batches, and a few steps on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from fxpar import origin
from fxpar.capture.pyfile import load_file
from fxpar.emit.folder import write
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.rank import Rank

EXAMPLE = load_file(Path(__file__).parents[2] / "examples" / "nanogpt.py")
PLANS = {
    "tp2pp2": Plan(tp=2, pp=2),
    "dp2pp2": Plan(dp=2, pp=2),
    "pp4": Plan(pp=4),
    "tp4": Plan(tp=4),
    "one": Plan(),
}
#: 66 rows over 4 ranks are 17, 17, 17 and 15: the last rank's part ends in padding. Head and embedding are tied.
SIZES = {"vocabulary": 66, "length": 12, "layers": 4, "heads": 4, "width": 16}
RANKS = {name: plan.mesh.world for name, plan in PLANS.items()}

#: Makes an optimizer and a scheduler, or None, for a rank.
Make = Callable[[Rank], tuple[Optimizer, Any]]


def adamw(rank: Rank) -> tuple[Optimizer, Any]:
    """Two groups, as is usual, each with a schedule of its own."""
    parameters = list(rank.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=0.02, betas=(0.8, 0.95), amsgrad=True)
    return optimizer, LambdaLR(optimizer, [lambda n: 0.9**n, lambda n: 1 / (1 + n)])


def sgd(rank: Rank) -> tuple[Optimizer, Any]:
    """Momentum, and a cosine."""
    optimizer = SGD(rank.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return optimizer, CosineAnnealingLR(optimizer, 20)


def adagrad(rank: Rank) -> tuple[Optimizer, Any]:
    """State that is there before the first step."""
    return Adagrad(rank.parameters(), lr=0.05, initial_accumulator_value=0.1), None


def batch(step: int) -> dict[str, torch.Tensor]:
    """What is learnt in one step."""
    draw = torch.Generator().manual_seed(step)
    text = torch.randint(SIZES["vocabulary"], (4, SIZES["length"] + 1), generator=draw)
    return {"idx": text[:, :-1].clone(), "targets": text[:, 1:].clone()}


@cache
def made(dropout: float = 0.0) -> origin.Origin:
    """The captured model."""
    torch.manual_seed(0)
    model = EXAMPLE.GPT(EXAMPLE.GPTConfig(**SIZES, dropout=dropout)).double()
    return origin.of_module(model, batch(0))


class Partitions:
    """The folders of partitions, each written when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self, name: str, dropout: float = 0.0, weights: bool = True) -> Path:
        folder = self.place / f"{name}-{dropout}-{weights}"
        if not folder.exists():
            found = made(dropout)
            write(split(found.program, PLANS[name]), folder, found.weights if weights else None)
        return folder


def steps(rank: Rank, optimizer: Optimizer, scheduler: Any, start: int, count: int) -> list[float]:
    """Train; the loss of each step."""
    losses = []
    for number in range(start, start + count):
        rank.zero_grad()
        losses.append(rank.step(batch(number)).item())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses


def run(
    folder: Path,
    name: str,
    make: Make,
    count: int,
    *,
    start: Path | None = None,
    target: Path | None = None,
) -> list[list[float]]:
    """The losses of each rank over some steps, from the beginning or from a checkpoint."""

    def body(_: int, groups: Groups) -> list[float]:
        rank = load(folder, groups, "cpu")
        optimizer, scheduler = make(rank)
        step = rank.restore(start, optimizer=optimizer, scheduler=scheduler) if start else 0
        losses = steps(rank, optimizer, scheduler, step or 0, count)
        if target is not None:
            rank.save(target, optimizer=optimizer, scheduler=scheduler, step=(step or 0) + count)
        return losses

    return list(simulate(PLANS[name].mesh, body))
