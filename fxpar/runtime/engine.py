"""Running one stage's microbatches over a transport: all there is to a pipeline, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.runtime.schedule import forward_order, order
from fxpar.runtime.transport import Transport

Microbatch = Mapping[str, Any]


@dataclass
class Results:
    """What the last stage has in the end, by microbatch: the losses, and the model's outputs without gradients."""

    losses: list[torch.Tensor] = field(default_factory=list)
    outputs: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, spec: StageSpec, outputs: tuple[Any, ...]) -> torch.Tensor | None:
        """Keep the outputs of one microbatch and return its loss, with its gradient."""
        self.outputs.append(tuple(o.detach() if isinstance(o, torch.Tensor) else o for o in outputs))
        if spec.loss is None:
            return None
        loss = outputs[spec.outputs.index(spec.loss.name)]
        assert isinstance(loss, torch.Tensor)
        self.losses.append(loss.detach())
        return loss


class Engine(Protocol):
    """Runs the microbatches of one step on one stage."""

    def run(self, microbatches: Sequence[Microbatch], schedule: str | None) -> Results:
        """Run all microbatches forward and, if a schedule is named, backward."""

    def resize(self, spec: StageSpec) -> None:
        """Take values of other sizes from now on."""


class TransportEngine:
    """Runs a stage over any `Transport`: the simulator's, or processes'. A single stage needs none.

    `ranks` are the ranks of all stages, in order.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: StageSpec,
        transport: Transport | None = None,
        ranks: Sequence[int] = (),
    ) -> None:
        self._module, self._spec = module, spec
        self._transport, self._ranks = transport, ranks
        self._kept: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}

    def run(self, microbatches: Sequence[Microbatch], schedule: str | None) -> Results:
        """Run all microbatches forward and, if a schedule is named, backward."""
        spec, count, results = self._spec, len(microbatches), Results()
        actions = order(schedule, spec.index, spec.count, count) if schedule else forward_order(count)
        for action in actions:
            if action.backward:
                self._backward(action.microbatch)
            else:
                with torch.set_grad_enabled(schedule is not None):
                    self._forward(
                        action.microbatch, microbatches[action.microbatch], results, schedule is not None
                    )
        if self._transport is not None:
            self._transport.flush()
        return results

    def resize(self, spec: StageSpec) -> None:
        """Take values of other sizes from now on."""
        self._spec = spec

    def _forward(self, number: int, microbatch: Microbatch, results: Results, training: bool) -> None:
        received = self._recv(self._spec.index - 1, self._spec.received)
        for value, tensor in zip(self._spec.received, received):
            tensor.requires_grad_(value.requires_grad and training)
        outputs = self._module(*received, **{name: microbatch[name] for name in self._spec.inputs})
        if self._spec.is_last:
            loss = results.add(self._spec, outputs)
            ends = [loss] if loss is not None else []
        else:
            self._send(self._spec.index + 1, outputs)
            ends = list(outputs)
        if training:
            self._kept[number] = (received, ends)

    def _backward(self, number: int) -> None:
        received, ends = self._kept.pop(number)
        sent = [end for end, value in zip(ends, self._spec.sent) if value.requires_grad]
        expected = [value for value in self._spec.sent if value.requires_grad]
        gradients = self._recv(self._spec.index + 1, expected)
        pairs = [(end, gradient) for end, gradient in zip(sent, gradients) if end.requires_grad]
        if self._spec.is_last:
            ends[0].backward()  # type: ignore[no-untyped-call]
        elif pairs:
            torch.autograd.backward([end for end, _ in pairs], [gradient for _, gradient in pairs])
        learnt = [tensor for tensor in received if tensor.requires_grad]
        self._send(self._spec.index - 1, [_gradient(tensor) for tensor in learnt])

    def _recv(self, stage: int, values: Sequence[ValueSpec]) -> list[torch.Tensor]:
        if not values:
            return []
        assert self._transport is not None
        return [self._transport.recv(self._ranks[stage], value.empty("meta")) for value in values]

    def _send(self, stage: int, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            assert self._transport is not None
            self._transport.send(tensor, self._ranks[stage])


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    """The gradient of a received value, zero where none came back."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
