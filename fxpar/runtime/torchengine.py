"""Running a rank's stages between processes with the runtime of torch.distributed.pipelining.

What it is given and what is replaced of it, since torch 2.13:

- Shapes are given, so that torch neither runs a stage to find them out nor asks the other ranks about them.
- Sizes may differ between microbatches: its buffers are made for each of them.
- Orders come from `fxpar.pipeline.orders`: torch has none for some numbers of microbatches, and none for evaluation.
- Gradients are not scaled: torch would scale those of earlier steps again.
- Gradients are made contiguous before they are sent: torch asks that of the model.
- A backward run in two halves is ours (`fxpar.runtime.halves`): torch's is wrong for some models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, schedules
from torch.distributed.pipelining._utils import InferenceMode, extract_tensor_metas

from fxpar.pipeline import orders
from fxpar.pipeline.orders import Action
from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.runtime.engine import Job, Recorder, Results
from fxpar.runtime.halves import backward_input
from fxpar.runtime.run import learning

#: torch logs its whole order where something fails; what failed is in the error.
logging.getLogger(schedules.__name__).setLevel(logging.CRITICAL)

#: How many sets of stages, each with buffers for microbatches of certain sizes, are kept.
KEPT = 4


class TorchEngine:
    """Runs the stages of a rank as torch's `PipelineStage`s, between the processes of `group`.

    `modules` are the rank's stages by index, `places` the rank within the group of each of all stages.
    """

    def __init__(
        self,
        modules: Mapping[int, nn.Module],
        places: Sequence[int],
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        self._modules, self._places = modules, places
        self._group, self._device = group, device
        self._made: dict[object, tuple[list[_Stage], _Runtime]] = {}
        self._met = False

    def run(self, job: Job, recorder: Recorder | None = None) -> Results:
        """Do all of a job; gradients add up in the parameters."""
        stages, runtime = self._runtime(job)
        results, count = Results(), len(job.microbatches)
        needed = {name for spec in job.specs[0] for name in spec.inputs}
        inputs = [{name: each[name] for name in needed} for each in job.microbatches]
        for stage in stages:
            stage.begin(results, recorder)
        with torch.set_grad_enabled(job.training):
            runtime._step_microbatches(None, inputs, [None] * count, return_outputs=False)
        for stage in stages:
            stage.clear_runtime_states()
        return results

    def _runtime(self, job: Job) -> tuple[list[_Stage], _Runtime]:
        """Stages and runtime for microbatches of these sizes; the last few used are kept."""
        sizes = [
            [value.shape for value in (*spec.received, *spec.sent)] for specs in job.specs for spec in specs
        ]
        key = (job.order, str(sizes))
        made = self._made.pop(key, None)
        if made is None:
            stages = [self._stage(job, position) for position in range(len(job.specs[0]))]
            made = stages, _Runtime(stages, job, self._places, met=self._met)
            self._met = True
        self._made[key] = made
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return made

    def _stage(self, job: Job, position: int) -> _Stage:
        specs = [each[position] for each in job.specs]
        stage = _Stage(self._modules[specs[0].index], specs, self._device, self._group)
        stage.has_backward = job.training
        return stage


class _Runtime(schedules._PipelineScheduleRuntime):
    """torch's runtime, told what to do in which order, and that all shapes are known."""

    def __init__(self, stages: Sequence[_Stage], job: Job, places: Sequence[int], met: bool) -> None:
        loss = _loss if job.training else None
        super().__init__(list(stages), len(job.microbatches), loss_fn=loss, scale_grads=False)  # type: ignore[no-untyped-call]
        self.stage_index_to_group_rank = dict(enumerate(places))
        for stage in stages:
            stage.stage_index_to_group_rank = self.stage_index_to_group_rank
        self.pipeline_order_with_comms = {self.rank: [orders.theirs(action) for action in job.order]}
        self._met = met

    def _warmup_p2p(self, stages: Any, has_backward: bool, p2p_done: bool) -> None:
        """Let neighbours meet once, in an order that cannot block; later only say that shapes are known."""
        if not self._met:
            super()._warmup_p2p(stages, has_backward, p2p_done)
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC


class _Stage(PipelineStage):
    """torch's stage, with values whose sizes may differ between microbatches: `specs` has one for each of these."""

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[StageSpec],
        device: torch.device,
        group: dist.ProcessGroup | None,
    ) -> None:
        first = specs[0]
        received, sent = _examples(first.received), _examples(_sent(first))
        super().__init__(module, first.index, first.count, device, received, sent, group=group)
        self._specs, self._results = specs, Results()
        self._recorder: Recorder | None = None
        self._runtime_validate = False
        self._microbatch = 0

    def begin(self, results: Results, recorder: Recorder | None) -> None:
        """Forget the step before; keep outputs in `results` from now on."""
        self.clear_runtime_states()
        self._results, self._recorder = results, recorder

    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True
    ) -> Any:
        """Run a microbatch forward, with those of its inputs that this stage takes."""
        self._microbatch = fwd_chunk_id
        own = {name: kwargs[name] for name in self._specs[fwd_chunk_id].inputs}
        with self._recording(orders.FORWARD, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, args, own, save_forward_output)

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; of the model's outputs torch is left nothing but the loss."""
        outputs = super().forward_maybe_with_nosync(*args, **kwargs)  # type: ignore[no-untyped-call]
        if not self.is_last:
            return outputs
        loss = self._results.add(self._specs[self._microbatch], self._microbatch, outputs)
        return () if loss is None else (loss,)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """Run a microbatch backward, or the first half of it."""
        with self._recording(orders.BACKWARD if full_backward else orders.INPUT, bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        found = self.bwd_cache.get(bwd_chunk_id, ())
        self.bwd_cache[bwd_chunk_id] = tuple(each if each is None else each.contiguous() for each in found)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Run the second half of a microbatch backward."""
        with self._recording(orders.WEIGHT, bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """Run backward, the two halves of it our way."""
        if backward_type == "weight":
            return bwd_kwargs["param_groups"].run(), None
        if backward_type != "input":
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        outputs, gradients = bwd_kwargs["stage_output"], bwd_kwargs["output_grads"]
        ends, given = learning(outputs, gradients)
        received = [value for value in bwd_kwargs["input_values"] if isinstance(value, torch.Tensor)]
        return backward_input(ends, given, received, self.submod.parameters())

    def _recording(self, kind: str, microbatch: int) -> Any:
        if self._recorder is None:
            return nullcontext()
        return self._recorder.recording(Action(self.stage_index, kind, microbatch))

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        assert num_microbatches == len(self._specs)
        made = {}
        for microbatch, spec in enumerate(self._specs):
            self._stage_meta.inputs = extract_tensor_metas(_examples(spec.received))
            super()._setup_forward_recv_info(1, has_backward)
            made[microbatch] = self.args_recv_info[0]
        self.args_recv_info = made

    def _setup_backward_recv_info(self, num_microbatches: int) -> None:
        self.chunks = num_microbatches
        for microbatch, spec in enumerate(self._specs):
            gradients = [value if value.requires_grad else None for value in _sent(spec)]
            self._stage_meta.output_grads = extract_tensor_metas(_examples(gradients), allow_none=True)
            self.grad_recv_info[microbatch] = self._create_grad_recv_info(self.act_send_info)


def _sent(spec: StageSpec) -> Sequence[ValueSpec]:
    """What torch is given by a stage: what is sent on, or the loss."""
    return spec.sent if not spec.is_last else (spec.loss,) if spec.loss else ()


def _examples(values: Sequence[ValueSpec | None]) -> tuple[Any, ...]:
    return tuple(value.empty("meta") if value else None for value in values)


def _loss(output: tuple[torch.Tensor, ...], _target: None) -> torch.Tensor:
    return output[0]
