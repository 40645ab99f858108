"""One run of an opaque module on drawn numbers, to know what comes out of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture.precision import Float64
from fxpar.capture.tree import plain
from fxpar.errors import CaptureError


@dataclass
class Trial:
    """A module without tensors, the names and sizes of those it needs, and the flat arguments of a call."""

    path: str
    module: nn.Module
    names: Sequence[str]
    held: Sequence[torch.Tensor]
    leaves: Sequence[Any]
    spec: pytree.TreeSpec
    double: bool

    def outputs(self) -> tuple[list[Any], pytree.TreeSpec]:
        """The flat outputs and their structure.

        It runs twice, on normal numbers and on zeros (integers are zero in both), in a thread of its own, where
        nothing is traced. Raises CaptureError where it does not run, where sizes depend on the numbers, where it draws
        random numbers, and where it changes its inputs or buffers.
        """
        found: list[Any] = []

        def work() -> None:
            try:
                found.extend(self._run(scale) for scale in (1.0, 0.0))
            except Exception as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(found[-1], CaptureError):
            raise found[-1]
        if isinstance(found[-1], Exception):
            reason = f"{type(found[-1]).__name__}: {str(found[-1]).strip().partition(chr(10))[0]}"
            raise CaptureError(f"opaque module `{self.path}` does not run on drawn numbers", details=[reason])
        (first, spec), (second, _) = found
        if [_kind(leaf) for leaf in first] != [_kind(leaf) for leaf in second]:
            raise self._refused("gives outputs whose sizes depend on the values of its inputs")
        return first, spec

    @torch.no_grad()
    def _run(self, scale: float) -> tuple[list[Any], pytree.TreeSpec]:
        draw = torch.Generator().manual_seed(0)
        held = [_drawn(tensor, scale, draw) for tensor in self.held]
        leaves = [
            _drawn(leaf, scale, draw) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        given = [tensor for tensor in (*held, *leaves) if isinstance(tensor, torch.Tensor)]
        versions, state = [tensor._version for tensor in given], torch.get_rng_state()
        tensors = dict(zip(self.names, held))
        with Float64() if self.double else nullcontext():
            result = torch.func.functional_call(self.module, tensors, args, kwargs)
        if any(tensors[name] is not tensor for name, tensor in zip(self.names, held)) or versions != [
            tensor._version for tensor in given
        ]:
            raise self._refused("changes its inputs or buffers in place")
        if not torch.equal(state, torch.get_rng_state()):
            raise self._refused("draws random numbers")
        return pytree.tree_flatten(plain(result))

    def _refused(self, what: str) -> CaptureError:
        return CaptureError(f"opaque module `{self.path}` {what}", details=[_REMEDIES[what.split()[0]]])


_REMEDIES = {
    "gives": "choose a module around it whose outputs have fixed sizes",
    "changes": "choose a module around or inside of it that does not",
    "draws": "build it with a dropout of 0, or capture it in eval mode",
}


def _drawn(like: torch.Tensor, scale: float, draw: torch.Generator) -> torch.Tensor:
    shape = tuple(int(size) for size in like.shape)
    if not (like.dtype.is_floating_point or like.dtype.is_complex):
        return torch.zeros(shape, dtype=like.dtype)
    return (torch.randn(shape, generator=draw) * scale).to(like.dtype)


def _kind(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf
