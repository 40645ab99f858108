"""Running a rank's stages over a transport, as the simulator does: all there is to a pipeline, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from fxpar.pipeline import orders
from fxpar.pipeline.orders import Action
from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.runtime.engine import Job, Recorder, Results
from fxpar.runtime.run import Runs
from fxpar.runtime.transport import Transport


class LocalEngine:
    """Runs the stages of a rank over any `Transport`: the simulator's, or processes'. A single stage needs none.

    `modules` are the rank's stages by index, `ranks` the ranks of the mesh that run each of all stages.
    """

    def __init__(
        self,
        modules: Mapping[int, nn.Module],
        transport: Transport | None = None,
        ranks: Sequence[int] = (),
    ) -> None:
        self._runs = {stage: Runs(module) for stage, module in modules.items()}
        self._transport, self._ranks = transport, ranks

    def run(self, job: Job, recorder: Recorder | None = None) -> Results:
        """Do all of a job; gradients add up in the parameters."""
        step = _Step(self._runs, self._transport, self._ranks, job)
        for action in job.order:
            computes = action.kind in orders.COMPUTATIONS
            recording = recorder.recording(action) if recorder and computes else nullcontext()
            with torch.set_grad_enabled(job.training), recording:
                step.do(action)
        if self._transport is not None:
            self._transport.flush()
        return step.results


class _Step:
    """One job on its way: what has arrived for a stage and microbatch, and what is to be sent."""

    def __init__(
        self, runs: Mapping[int, Runs], transport: Transport | None, ranks: Sequence[int], job: Job
    ) -> None:
        self.results = Results()
        self._runs, self._transport, self._ranks, self._job = runs, transport, ranks, job
        self._values: dict[tuple[int, int], Sequence[torch.Tensor]] = {}
        self._gradients: dict[tuple[int, int], Sequence[torch.Tensor]] = {}
        self._outgoing: dict[tuple[int, int, str], Sequence[torch.Tensor]] = {}

    def do(self, action: Action) -> None:
        """Do the next of a rank's actions."""
        stage, kind, number = action
        spec = self._job.spec(stage, number)
        match kind:
            case orders.FORWARD:
                self._forward(spec, number)
            case orders.RECV_FORWARD:
                self._values[stage, number] = self._recv(stage - 1, spec.received)
            case orders.RECV_BACKWARD:
                self._gradients[stage, number] = self._recv(stage + 1, _learnt(spec.sent))
            case orders.SEND_FORWARD | orders.SEND_BACKWARD:
                self._send(
                    stage + (1 if kind == orders.SEND_FORWARD else -1),
                    self._outgoing.pop((stage, number, kind)),
                )
            case orders.BACKWARD:
                self._backward(spec, number, self._runs[stage].backward(number, self._given(spec, number)))
            case orders.INPUT:
                self._backward(
                    spec, number, self._runs[stage].backward_input(number, self._given(spec, number))
                )
            case orders.WEIGHT:
                self._runs[stage].backward_weight(number)

    def _forward(self, spec: StageSpec, number: int) -> None:
        received = self._values.pop((spec.index, number), ())
        runs = self._runs[spec.index]
        outputs = runs.forward(spec, received, self._job.inputs(spec.index, number))
        ends = [output for output, value in zip(outputs, spec.sent) if value.requires_grad]
        if spec.is_last:
            loss = self.results.add(spec, number, outputs)
            ends = [loss] if loss is not None else []
        elif spec.index + 1 in self._runs:
            self._values[spec.index + 1, number] = [output.detach() for output in outputs]
        else:
            self._outgoing[spec.index, number, orders.SEND_FORWARD] = outputs
        if self._job.training:
            runs.keep(number, received, ends)

    def _given(self, spec: StageSpec, number: int) -> Sequence[torch.Tensor] | None:
        """The gradients of what a stage has sent; None for the loss itself."""
        return None if spec.is_last else self._gradients.pop((spec.index, number), ())

    def _backward(self, spec: StageSpec, number: int, gradients: Sequence[torch.Tensor]) -> None:
        """Pass on the gradients of what a stage received."""
        if spec.index - 1 in self._runs:
            self._gradients[spec.index - 1, number] = gradients
        elif spec.index:
            self._outgoing[spec.index, number, orders.SEND_BACKWARD] = gradients

    def _recv(self, stage: int, values: Sequence[ValueSpec]) -> list[torch.Tensor]:
        assert self._transport is not None
        return [self._transport.recv(self._ranks[stage], value.empty("meta")) for value in values]

    def _send(self, stage: int, tensors: Sequence[torch.Tensor]) -> None:
        assert self._transport is not None
        for tensor in tensors:
            self._transport.send(tensor, self._ranks[stage])


def _learnt(values: Sequence[ValueSpec]) -> list[ValueSpec]:
    return [value for value in values if value.requires_grad]
