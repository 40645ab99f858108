"""What runs the stages of one rank: what it is told, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import Action, Order
from fxpar.pipeline.spec import StageSpec

Microbatch = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """What a rank does in one step: the `order` of its runs and transfers, for microbatches that it is given by name.

    `specs` has the rank's stages as each microbatch has them: their values may differ in size. `training` says whether
    gradients are wanted.
    """

    microbatches: Sequence[Microbatch]
    specs: Sequence[Sequence[StageSpec]]
    order: Order
    training: bool

    def spec(self, stage: int, microbatch: int) -> StageSpec:
        """A stage as a microbatch has it."""
        return next(spec for spec in self.specs[microbatch] if spec.index == stage)

    def inputs(self, stage: int, microbatch: int) -> dict[str, Any]:
        """The inputs of a stage that come from outside."""
        return {name: self.microbatches[microbatch][name] for name in self.spec(stage, microbatch).inputs}


@dataclass
class Results:
    """What a rank has in the end, by microbatch: of the last stage the losses, and the outputs without gradients."""

    losses: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def add(self, spec: StageSpec, microbatch: int, outputs: tuple[Any, ...]) -> torch.Tensor | None:
        """Keep the outputs of one microbatch and return its loss, with its gradient, as a tensor of its own."""
        self.outputs[microbatch] = tuple(o.detach() if isinstance(o, torch.Tensor) else o for o in outputs)
        if spec.loss is None:
            return None
        loss = outputs[spec.outputs.index(spec.loss.name)]
        assert isinstance(loss, torch.Tensor)
        self.losses[microbatch] = loss.detach()
        return loss.clone()


class Engine(Protocol):
    """Runs the stages of one rank."""

    def run(self, job: Job, recorder: Recorder | None) -> Results:
        """Do all of a job; gradients add up in the parameters."""


class Recorder:
    """Records when a rank runs what, in seconds of its clock; work on an accelerator is waited for."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.events: list[Event] = []
        self._rank, self._device = rank, device

    @contextmanager
    def recording(self, action: Action) -> Iterator[None]:
        """Record one run of a stage."""
        start = self._now()
        yield
        self.events.append(Event(self._rank, action, start, self._now()))

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.time()
