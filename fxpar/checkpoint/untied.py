"""Weights in which a tied tensor may stand under any of its names, or under several of them with the same values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxpar.checkpoint.weights import Box, Weights, read_same


class Untied:
    """Weights by the first names of tied tensors; `ties` maps other names to those."""

    def __init__(self, weights: Weights, ties: Mapping[str, str]) -> None:
        self._weights = weights
        self._keys = {name: name for name in weights.names()}
        present = set(self._keys)
        self._copies: dict[str, list[str]] = {}
        for other, first in ties.items():
            if other in present and self._keys.setdefault(first, other) != other:
                self._copies.setdefault(first, []).append(other)

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
        """The boxes as one new tensor. Raises CheckpointError where another name of the tensor has other values."""
        return read_same(self._weights, [self.key(name), *self._copies.get(name, ())], boxes)
