"""Running one stage's microbatches with the schedules of torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.runtime.engine import Microbatch, Results

#: How many stages, each with buffers for values of one size, are kept.
KEPT = 4

_SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class TorchEngine:
    """Runs a stage as torch's `PipelineStage`, between the processes of `group`, whose ranks are the stages in order.

    Shapes and dtypes are given, so that torch never runs a stage to find them out. Gradients are not scaled. 1f1b with
    fewer microbatches than stages is run as gpipe, which keeps no more of them alive then.
    """

    def __init__(
        self, module: nn.Module, spec: StageSpec, group: dist.ProcessGroup | None, device: torch.device
    ) -> None:
        self._module, self._spec = module, spec
        self._group, self._device = group, device
        self._made: dict[tuple[object, ...], tuple[PipelineStage, PipelineScheduleSingle]] = {}

    def run(self, microbatches: Sequence[Microbatch], schedule: str | None) -> Results:
        """Run all microbatches forward and, if a schedule is named, backward."""
        stage, plan = self._plan(schedule, len(microbatches))
        results = Results()
        hook = self._module.register_forward_hook(self._collector(results)) if self._spec.is_last else None
        inputs = [{name: microbatch[name] for name in self._spec.inputs} for microbatch in microbatches]
        stage.has_backward = schedule is not None
        stage.clear_runtime_states()
        try:
            with torch.set_grad_enabled(schedule is not None):
                plan._step_microbatches(None, inputs, [None] * len(microbatches), return_outputs=False)
        finally:
            if hook is not None:
                hook.remove()
        return results

    def resize(self, spec: StageSpec) -> None:
        """Take values of other sizes from now on: torch's buffers and checks are made for one size."""
        self._spec = spec

    def _plan(self, schedule: str | None, count: int) -> tuple[PipelineStage, PipelineScheduleSingle]:
        """The stage and schedule for a number of microbatches of one size; the last few used are kept."""
        name = "gpipe" if schedule is None or count < self._spec.count else schedule
        shapes = [value.shape for value in (*self._spec.received, *self._spec.sent)]
        key = (schedule is not None, name, count, *shapes)
        made = self._made.pop(key, None)
        if made is None:
            stage = self._stage()
            loss = _loss if schedule is not None else None
            made = stage, _SCHEDULES[name](stage, count, loss_fn=loss, scale_grads=False)
        self._made[key] = made
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return made

    def _stage(self) -> PipelineStage:
        spec = self._spec
        sent = spec.sent if not spec.is_last else (spec.loss,) if spec.loss else ()
        return PipelineStage(
            self._module,
            spec.index,
            spec.count,
            self._device,
            input_args=_examples(spec.received),
            output_args=_examples(sent),
            group=self._group,
        )

    def _collector(self, results: Results) -> Any:
        """A hook that takes the outputs of the last stage and leaves torch nothing but the loss."""

        def collect(_module: nn.Module, _inputs: Any, outputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
            loss = results.add(self._spec, outputs)
            return () if loss is None else (loss,)

        return collect


def _examples(values: Sequence[ValueSpec]) -> tuple[torch.Tensor, ...]:
    return tuple(value.empty("meta") for value in values)


def _loss(output: tuple[torch.Tensor, ...], _target: None) -> torch.Tensor:
    return output[0]
