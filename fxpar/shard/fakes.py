"""Fake tensors of local sizes, one for each size and dtype: making one costs far more than deciding what it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Fakes:
    """Makes fake tensors; equal ones are one object, so that nothing may be read off their storages."""

    def __init__(self) -> None:
        self._made: dict[tuple[tuple[int, ...], torch.dtype, torch.device], torch.Tensor] = {}

    def like(self, value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """A fake with the dtype and device of `value` and another shape; `value` itself if it has that shape."""
        wanted = tuple(shape)
        if tuple(value.shape) == wanted:
            return value
        key = (wanted, value.dtype, value.device)
        if key not in self._made:
            self._made[key] = value.new_empty(wanted)
        return self._made[key]
