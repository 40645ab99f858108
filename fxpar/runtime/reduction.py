"""The sums of gradients that split work left partial: one coalesced call after each backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fxpar.mesh import joined
from fxpar.runtime.gradients import ParameterGradient, reduce_gradients
from fxpar.runtime.groups import Groups
from fxpar.runtime.manifest import Manifest


class Reduction:
    """Knows which gradients of a rank are partial, and completes them.

    Gradients that earlier backward passes left in the parameters are complete already: they are put aside and added.
    """

    def __init__(self, module: nn.Module, manifest: Manifest, groups: Groups) -> None:
        self.groups = groups
        self.gradients = _gradients(module, manifest, groups)
        self._partial = [each for each in self.gradients if any(groups.size(kind) > 1 for kind in each.kinds)]
        self._aside: list[torch.Tensor | None] = []
        self._open = False

    @contextmanager
    def around(self) -> Iterator[None]:
        """Complete the gradients that the backward passes inside make. An error leaves them as they are."""
        self.begin()
        yield
        self.finish()

    def begin(self) -> None:
        """Put complete gradients aside; nothing if that was done and not finished."""
        if not self._open and self._partial:
            self._aside = [each.parameter.grad for each in self._partial]
            for each in self._partial:
                each.parameter.grad = None
            self._open = True

    def finish(self) -> None:
        """Sum the new gradients and add what was put aside."""
        if not self._open:
            return
        self._open = False
        reduce_gradients(self._partial, self.groups)
        for each, old in zip(self._partial, self._aside):
            if old is not None:
                new = each.parameter.grad
                each.parameter.grad = old if new is None else old.add_(new)
        self._aside = []

    def watch(self, outputs: Sequence[object]) -> None:
        """Complete the gradients after the backward pass that starts at any of these tensors."""
        for output in outputs:
            if isinstance(output, torch.Tensor) and output.requires_grad and self._partial:
                output.register_hook(self._started)  # type: ignore[no-untyped-call]

    def _started(self, _gradient: torch.Tensor) -> None:
        if not self._open:
            self.begin()
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)


def _gradients(module: nn.Module, manifest: Manifest, groups: Groups) -> list[ParameterGradient]:
    stages = manifest.stages_of(groups.rank)
    ties = {name: kind for stage in stages for kind, names in stage.groups().items() for name in names}
    found = []
    for name, parameter in module.named_parameters():
        spec = manifest.tensors[name]
        reduce = (joined(spec.reduce),) if spec.reduce else ()
        if parameter.requires_grad:
            split = (*spec.split, "pp")
            found.append(ParameterGradient(name, parameter, reduce, split, ties.get(name), spec.overlaps))
    return found
