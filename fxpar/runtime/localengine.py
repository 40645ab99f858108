"""Running a rank's stages over a transport, as the simulator does: all there is to a pipeline, in one file."""

from __future__ import annotations

from collections import defaultdict, deque
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
    """One job on its way: what has arrived for a stage and microbatch, and what is to be sent.

    Both are known by the action that receives or sends. A receive only takes its place in the line of what comes from
    a rank; it is waited for where it is used.
    """

    def __init__(
        self, runs: Mapping[int, Runs], transport: Transport | None, ranks: Sequence[int], job: Job
    ) -> None:
        self.results = Results()
        self._runs, self._transport, self._ranks, self._job = runs, transport, ranks, job
        self._lines: dict[int, deque[Action]] = defaultdict(deque)
        self._arrived: dict[Action, Sequence[torch.Tensor]] = {}
        self._outgoing: dict[Action, Sequence[torch.Tensor]] = {}

    def do(self, action: Action) -> None:
        """Do the next of a rank's actions."""
        stage, kind, number = action
        spec, runs = self._job.spec(stage, number), self._runs[stage]
        match kind:
            case orders.FORWARD:
                self._forward(spec, number)
            case orders.RECV_FORWARD | orders.RECV_BACKWARD:
                self._lines[orders.peer(action, self._ranks)].append(action)
            case orders.SEND_FORWARD | orders.SEND_BACKWARD:
                self._send(action)
            case orders.BACKWARD:
                self._pass_back(spec, number, runs.backward(number, self._given(spec, number)))
            case orders.INPUT:
                self._pass_back(spec, number, runs.backward_input(number, self._given(spec, number)))
            case orders.WEIGHT:
                runs.backward_weight(number)

    def _forward(self, spec: StageSpec, number: int) -> None:
        received = self._take(Action(spec.index, orders.RECV_FORWARD, number)) if spec.index else ()
        runs = self._runs[spec.index]
        outputs = runs.forward(spec, received, self._job.inputs(spec.index, number))
        ends = [output for output, value in zip(outputs, spec.sent) if value.requires_grad]
        if spec.is_last:
            loss = self.results.add(spec, number, outputs)
            ends = [loss] if loss is not None else []
        elif spec.index + 1 in self._runs:
            arrived = Action(spec.index + 1, orders.RECV_FORWARD, number)
            self._arrived[arrived] = [output.detach() for output in outputs]
        else:
            self._outgoing[Action(spec.index, orders.SEND_FORWARD, number)] = outputs
        if self._job.training:
            runs.keep(number, received, ends)

    def _given(self, spec: StageSpec, number: int) -> Sequence[torch.Tensor] | None:
        """The gradients of what a stage has sent; None for the loss itself."""
        return None if spec.is_last else self._take(Action(spec.index, orders.RECV_BACKWARD, number))

    def _pass_back(self, spec: StageSpec, number: int, gradients: Sequence[torch.Tensor]) -> None:
        """Pass on the gradients of what a stage received."""
        if spec.index - 1 in self._runs:
            self._arrived[Action(spec.index - 1, orders.RECV_BACKWARD, number)] = gradients
        elif spec.index:
            self._outgoing[Action(spec.index, orders.SEND_BACKWARD, number)] = gradients

    def _take(self, wanted: Action) -> Sequence[torch.Tensor]:
        """What a receive brings; before it, all that stands before it in line."""
        while wanted not in self._arrived:
            rank = orders.peer(wanted, self._ranks)
            next_one = self._lines[rank].popleft()
            assert self._transport is not None
            self._arrived[next_one] = [
                self._transport.recv(rank, value.empty("meta")) for value in self._values(next_one)
            ]
        return self._arrived.pop(wanted)

    def _values(self, action: Action) -> Sequence[ValueSpec]:
        """What a receive brings."""
        spec = self._job.spec(action.stage, action.microbatch)
        if action.kind == orders.RECV_FORWARD:
            return spec.received
        return [value for value in spec.sent if value.requires_grad]

    def _send(self, action: Action) -> None:
        assert self._transport is not None
        for tensor in self._outgoing.pop(action):
            self._transport.send(tensor, orders.peer(action, self._ranks))
