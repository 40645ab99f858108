"""Whole tensors, put together again from the files of a sharded checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from fxpar.checkpoint.index import Index, Indexed
from fxpar.checkpoint.weights import DTYPES, Box, FileWeights, TensorWeights, files_of
from fxpar.errors import CheckpointError


class ShardedWeights:
    """The weights in a folder with a `fxpar.index.json`. One tensor at a time is whole."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError where the index or a file that it names is missing or damaged."""
        self.index = Index.read(folder)
        self._files = {
            name: FileWeights(files_of(folder / name)) for name in self.index.files if self._used(name)
        }

    def names(self) -> list[str]:
        """The names of all tensors, each tied one once."""
        return list(self.index.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return self._tensor(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""
        return DTYPES[self._tensor(name).dtype]

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor. Raises CheckpointError for a tensor of which the files lack a part."""
        whole = self._whole(name)
        return whole if boxes is None else TensorWeights({name: whole}).read(name, boxes)

    def _whole(self, name: str) -> torch.Tensor:
        tensor = self._tensor(name)
        whole = torch.empty(tensor.shape, dtype=self.dtype(name))
        seen = set()
        for file, parts in tensor.files.items():
            for part in parts:
                if part[:2] not in seen:
                    inside = Box(part.offsets, part.sizes).slices
                    whole[inside] = self._files[file].read(name, [Box(part.local, part.sizes)])
                    seen.add(part[:2])
        if sum(prod(sizes) for _, sizes in seen) != whole.numel():
            raise CheckpointError(f"the files hold {len(seen)} parts of `{name}`, which are not all of it")
        return whole

    def _tensor(self, name: str) -> Indexed:
        if name not in self.index.tensors:
            raise CheckpointError(f"there are no weights for `{name}`")
        return self.index.tensors[name]

    def _used(self, file: str) -> bool:
        return any(file in tensor.files for tensor in self.index.tensors.values())
