"""What is verified of a folder that `fxpar partition` wrote: its modules and files as they lie there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from fxpar.again import Again, again
from fxpar.checkpoint.index import LAYOUT
from fxpar.checkpoint.weights import Box, FileWeights, TensorWeights, files_of
from fxpar.errors import CheckpointError
from fxpar.parts import ModelWeights
from fxpar.passes import Partition
from fxpar.runtime.load import draw, inside
from fxpar.runtime.manifest import Manifest
from fxpar.shard import boxes as shard_boxes
from fxpar.verification.subject import Subject


def folder_subject(folder: Path) -> Subject:
    """A folder, with the model that it was made of and whole weights from its own files.

    Raises EmitError where the folder no longer fits its model, CheckpointError where a file is missing or damaged.
    """
    made = again(folder, real=True)
    weights = ModelWeights(made.partition.program, RankFiles(folder, made.partition))
    return _subject(folder, made, weights)


def _subject(folder: Path, made: Again, weights: ModelWeights) -> Subject:
    example = made.example
    return Subject(
        made.partition, made.model, example.args, example.kwargs, weights, folder=folder, exact=made.exact
    )


def _check_unchanged(path: Path, manifest: Manifest) -> None:
    """Raise CheckpointError if a file of weights is not what was written: there is nothing to hold it against."""
    if not path.is_file() or path.name not in manifest.files:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest.files[path.name]:
        raise CheckpointError(
            f"{path.name} was changed since it was written", details=["partition the model again"]
        )


class RankFiles:
    """Whole tensors from the files of all ranks, put together by the boxes of the partition, one at a time."""

    def __init__(self, folder: Path, partition: Partition) -> None:
        """Raises CheckpointError for a file that is missing or damaged."""
        manifest = Manifest.read(folder)
        self._laid, self._seed = partition.sharded.tensors, manifest.seed
        self._parts: dict[str, dict[str, list[shard_boxes.Box]]] = {}
        self._files: dict[str, FileWeights] = {}
        for rank, names in enumerate(manifest.ranks):
            for name in names:
                if name not in self._files:
                    _check_unchanged(inside(folder, name), manifest)
                    self._add(inside(folder, name), partition.mesh.coordinate(rank))
        self._drawn = LAYOUT in manifest.files

    def _add(self, path: Path, coordinate: dict[str, int]) -> None:
        keys = files_of(path)
        self._files[path.name] = FileWeights(keys)
        for key in keys:
            self._parts.setdefault(key, {})[path.name] = self._laid[key].boxes(coordinate)

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._laid)

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        return self._laid[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype."""
        return self._laid[name].dtype

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one new tensor. Raises CheckpointError for a tensor of which the files lack a part."""
        return TensorWeights({name: self._whole(name)}).read(name, boxes)

    def _whole(self, name: str) -> torch.Tensor:
        if name not in self._parts and self._drawn:
            return draw(name, self.shape(name), self._seed)
        whole = torch.empty(self.shape(name), dtype=self.dtype(name))
        missing = torch.ones(self.shape(name), dtype=torch.bool)
        for file, parts in self._parts.get(name, {}).items():
            for part in parts:
                place = Box(part.offset, part.sizes).slices
                whole[place] = self._files[file].read(name, [Box(part.local, part.sizes)])
                missing[place] = False
        if missing.any():
            raise CheckpointError(f"the files of the ranks do not hold all of `{name}`")
        return whole
