"""What of a rank's tensors is padding: rows that make its part as long as the others', and that no file holds.

a parameter of 97 rows over 4 ranks     25 | 25 | 25 | 22 real ones, then 3 of zeros
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxpar.runtime.groups import Groups
from fxpar.runtime.manifest import Manifest


class Padding:
    """The parameters and buffers of one rank that end in padding, with the shapes of what is real of them."""

    def __init__(self, held: Mapping[str, tuple[int, ...]], local: Mapping[str, tuple[int, ...]]) -> None:
        self.held, self.local = held, local

    @staticmethod
    def of(manifest: Manifest, groups: Groups) -> Padding:
        """That of the rank which `groups` belong to."""
        local = {name: spec.local_shape for name, spec in manifest.tensors.items() if spec.uneven}
        local |= {name: local[first] for name, first in manifest.ties.items() if first in local}
        held = {}
        for name, shape in local.items():
            real = manifest.tensors[manifest.ties.get(name, name)].held_shape(groups.coordinate)
            if real != shape:
                held[name] = real
        return Padding(held, local)

    def real(self, name: str, tensor: Tensor) -> Tensor:
        """A view of a tensor, or of its gradient, without padding."""
        for dim, length in enumerate(self.held.get(name, ())):
            if tensor.shape[dim] != length:
                tensor = tensor.narrow(dim, 0, length)
        return tensor

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor, value: Tensor) -> None:
        """Copy values into a tensor and zeros into its padding."""
        if name in self.held:
            tensor.zero_()
        self.real(name, tensor).copy_(value)

    def padded(self, name: str, value: Tensor) -> Tensor:
        """A value with zeros for padding, of what `real` gives; any other value as it is."""
        if name not in self.held or tuple(value.shape) != self.held[name]:
            return value
        behind = [n - m for n, m in zip(reversed(self.local[name]), reversed(self.held[name]))]
        return torch.nn.functional.pad(value, [amount for each in behind for amount in (0, each)])

    def watch(self, module: nn.Module) -> None:
        """Let a module's `state_dict` give what is real, as views, and its `load_state_dict` take that."""
        if self.held:
            module.register_state_dict_post_hook(partial(self._leave))  # type: ignore[no-untyped-call]
            module.register_load_state_dict_pre_hook(partial(self._enter))  # type: ignore[no-untyped-call]

    def _leave(self, _module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
        for name in self.held:
            if prefix + name in state:
                state[prefix + name] = self.real(name, state[prefix + name])

    def _enter(self, _module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name in self.held:
            if prefix + name in state:
                state[prefix + name] = self.padded(name, state[prefix + name])
