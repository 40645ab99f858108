"""What is verified of a folder that `fxpar partition` wrote: its modules and files as they lie there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fxpar.again import again
from fxpar.checkpoint.index import NAME, Index
from fxpar.checkpoint.weights import Box, TensorWeights, Weights
from fxpar.checkpoint.whole import ShardedWeights
from fxpar.emit.folder import LAYOUT
from fxpar.errors import CheckpointError
from fxpar.parts import ModelWeights
from fxpar.runtime.load import draw
from fxpar.verify.subject import Subject, check_repeatable


def folder_subject(folder: Path) -> Subject:
    """A folder, with the model that it was made of and whole weights from its own files.

    Raises EmitError where the folder no longer fits its model, CheckpointError where a file is missing or damaged.
    """
    made = again(folder)
    check_repeatable(made.partition)
    manifest = made.partition.manifest
    weights: Weights
    if (folder / NAME).is_file():
        weights = ShardedWeights(folder)
    else:
        weights = DrawnWeights(Index.read(folder / LAYOUT), manifest.seed)
    held = ModelWeights(made.partition.program, weights)
    return Subject(
        made.partition, made.model, made.example.args, made.example.kwargs, held, folder, exact=made.exact
    )


class DrawnWeights:
    """The weights that the ranks of a folder without weights draw."""

    def __init__(self, index: Index, seed: int) -> None:
        self._index, self._seed = index, seed

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._index.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        if name not in self._index.tensors:
            raise CheckpointError(f"there are no weights for `{name}`")
        return self._index.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which it is drawn."""
        self.shape(name)
        return torch.float32

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor."""
        return TensorWeights({name: draw(name, self.shape(name), self._seed)}).read(name, boxes)
