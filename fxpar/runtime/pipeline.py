"""A pipeline as one of its ranks sees it: a step over microbatches, an evaluation, and the sums of shared gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from fxpar.errors import PlanError, RankError
from fxpar.pipeline.spec import StageSpec
from fxpar.runtime.engine import Engine, Microbatch, TransportEngine
from fxpar.runtime.groups import Groups
from fxpar.runtime.schedule import check_schedule

Outputs = list[tuple[Any, ...]]


class Pipeline:
    """Runs the stage of this rank; every rank of the `pp` group does the same calls with the same microbatches.

    `module` takes the received values in order and the batch inputs by name, and returns the tuple of values to send
    or, on the last stage, of the model's outputs. `groups` are this rank's, with the mesh dim `pp` and a transport
    (none are needed for a single stage). Processes run torch's schedules; the simulator, and a single stage, our own.

        loss, outputs = pipeline.step([{"input_ids": ids, "labels": labels} for ids, labels in microbatches])

    Raises `PlanError` for a schedule that does not exist.
    """

    def __init__(
        self, module: nn.Module, spec: StageSpec, groups: Groups | None = None, *, schedule: str = "1f1b"
    ) -> None:
        check_schedule(schedule)
        self.module, self.spec, self.schedule = module, spec, schedule
        self._groups = groups
        self._engine = _engine(module, spec, groups)

    def resize(self, spec: StageSpec) -> None:
        """Run the next microbatches with values of other sizes: those of a specification that is else the same."""
        self.spec = spec
        self._engine.resize(spec)

    def step(
        self, microbatches: Sequence[Microbatch], *, everywhere: bool = False
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        """Run the microbatches forward and backward; gradients add up in the parameters.

        Each microbatch holds all inputs by name. The loss is normalised over the whole batch, so the microbatches'
        losses are summed. Returns that sum and the outputs of each microbatch, without gradients: on the last stage;
        elsewhere None, or with `everywhere` the loss too. Raises `RankError` if the model has no loss.
        """
        if self.spec.loss is None:
            raise RankError(
                "there is no loss to step on", details=[f"outputs: {', '.join(self.spec.outputs)}"]
            )
        return self._run(microbatches, self.schedule, everywhere)

    def evaluate(
        self, microbatches: Sequence[Microbatch], *, everywhere: bool = False
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        """Run the microbatches forward, without gradients. Returns what `step` does; no loss if the model has none."""
        return self._run(microbatches, None, everywhere)

    def sum_shared_gradients(self) -> None:
        """Sum the gradients of parameters that several stages hold, so that their copies stay equal.

        To be called once before each step of the optimizer; one all-reduce for each set of stages and dtype.
        """
        for kind, names in self.spec.groups().items():
            assert self._groups is not None
            group = self._groups.group(kind)
            learning = [p for name in names if (p := self.module.get_parameter(name)).requires_grad]
            parameters = sorted(learning, key=lambda p: str(p.dtype))
            for _, same in groupby(parameters, key=lambda p: p.dtype):
                _sum_gradients(list(same), group.all_reduce)

    def _run(
        self, microbatches: Sequence[Microbatch], schedule: str | None, everywhere: bool
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        if not microbatches:
            raise PlanError("a pipeline needs one microbatch at least")
        results = self._engine.run(microbatches, schedule)
        loss = torch.stack(results.losses).sum() if results.losses else None
        if everywhere and self.spec.loss is not None and self.spec.count > 1:
            loss = self._spread(loss)
        return loss, results.outputs if self.spec.is_last else None

    def _spread(self, loss: torch.Tensor | None) -> torch.Tensor:
        """Give the last stage's loss to every stage."""
        assert self.spec.loss is not None
        assert self._groups is not None
        if loss is None:
            dtype = getattr(torch, self.spec.loss.dtype)
            loss = torch.zeros((), dtype=dtype, device=_device(self.module))
        return self._groups.group("pp").all_reduce(loss)


def _engine(module: nn.Module, spec: StageSpec, groups: Groups | None) -> Engine:
    if spec.count == 1 or groups is None:
        return TransportEngine(module, spec)
    group = groups.group("pp")
    if group.size != spec.count or group.index != spec.index:
        what = f"stage {spec.index} of {spec.count} cannot run on rank {groups.rank}"
        raise RankError(what, details=[f"that is coordinate {group.index} of {group.size} along pp"])
    if (processes := getattr(group, "process_group", None)) is None:
        return TransportEngine(module, spec, groups.transport, group.ranks)
    from fxpar.runtime.torchengine import TorchEngine  # slow to import, and not needed to simulate

    return TorchEngine(module, spec, processes, _device(module))


def _device(module: nn.Module) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _sum_gradients(parameters: Sequence[nn.Parameter], all_reduce: Any) -> None:
    """Sum the gradients of some parameters of one dtype in one call; a missing one counts as zero."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = all_reduce(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for parameter, piece in zip(parameters, summed.split([p.numel() for p in parameters])):
        parameter.grad = piece.view_as(parameter).clone()
