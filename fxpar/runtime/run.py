"""The runs of one stage: forward, backward, or backward in two halves, for several microbatches at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fxpar.pipeline.spec import StageSpec
from fxpar.runtime.halves import Half, backward_input


class _Kept(NamedTuple):
    """What a forward run leaves for the backward run: leaves for what was received, and where gradients begin."""

    received: Sequence[torch.Tensor]
    ends: Sequence[torch.Tensor]


Gradients = Sequence[torch.Tensor] | None


class Runs:
    """Runs one stage; `module` takes the received values in order and the inputs by name."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept: dict[int, _Kept] = {}
        self._halves: dict[int, Half] = {}
        self._waiting: dict[int, Gradients] = {}

    def forward(
        self, spec: StageSpec, received: Sequence[torch.Tensor], inputs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Run forward and return the values to send, or the model's outputs."""
        for value, tensor in zip(spec.received, received):
            tensor.requires_grad_(value.requires_grad and torch.is_grad_enabled())
        outputs = self._module(*received, **inputs)
        assert isinstance(outputs, tuple)
        return outputs

    def keep(self, microbatch: int, received: Sequence[torch.Tensor], ends: Sequence[torch.Tensor]) -> None:
        """Keep for the backward run what was received, and the loss or the values whose gradients come back."""
        self._kept[microbatch] = _Kept(received, ends)

    def backward(self, microbatch: int, gradients: Gradients) -> list[torch.Tensor]:
        """Run backward from the gradients of what was kept, or from the loss; return those of what was received."""
        received, ends = self._kept.pop(microbatch)
        ends, given = learning(ends, gradients)
        if ends:
            torch.autograd.backward(ends, given)
        return _gradients(received)

    def backward_input(self, microbatch: int, gradients: Gradients) -> list[torch.Tensor]:
        """Find the gradients of what was received alone. Where there are none, all is left to `backward_weight`."""
        received, ends = self._kept[microbatch]
        if not any(tensor.requires_grad for tensor in received):
            self._waiting[microbatch] = gradients
            return []
        del self._kept[microbatch]
        ends, given = learning(ends, gradients)
        found, self._halves[microbatch] = backward_input(ends, given, received, self._module.parameters())
        return [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(received, found)
            if tensor.requires_grad
        ]

    def backward_weight(self, microbatch: int) -> None:
        """Add up the gradients of the parameters, after `backward_input`."""
        if microbatch in self._waiting:
            self.backward(microbatch, self._waiting.pop(microbatch))
        else:
            self._halves.pop(microbatch).run()


def learning(
    ends: Sequence[torch.Tensor], gradients: Gradients
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """The ends that have a gradient, with it."""
    if gradients is None:
        return [end for end in ends if end.requires_grad], None
    pairs = [(end, gradient) for end, gradient in zip(ends, gradients) if end.requires_grad]
    return [end for end, _ in pairs], [gradient for _, gradient in pairs]


def _gradients(received: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of received values that want one, zero where none came back."""
    learnt = [tensor for tensor in received if tensor.requires_grad]
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in learnt]
