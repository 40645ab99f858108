"""Weights in which a tied tensor may stand under any of its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxpar.checkpoint.weights import Box, Weights


class Untied:
    """Weights by the first names of tied tensors; `ties` maps other names to those."""

    def __init__(self, weights: Weights, ties: Mapping[str, str]) -> None:
        self._weights = weights
        self._keys = {name: name for name in weights.names()}
        for other, first in ties.items():
            if other in self._keys:
                self._keys.setdefault(first, other)

    def key(self, name: str) -> str:
        """The name by which the weights know a tensor."""
        return self._keys.get(name, name)

    def names(self) -> Sequence[str]:
        """The names of all tensors."""
        return list(self._keys)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return self._weights.shape(self.key(name))

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""
        return self._weights.dtype(self.key(name))

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor."""
        return self._weights.read(self.key(name), boxes)
