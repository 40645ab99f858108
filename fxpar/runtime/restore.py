"""Going on where a run was stopped: parameters, optimizer, scheduler, random numbers and step from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fxpar.checkpoint import plain
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.local import read as read_parts
from fxpar.checkpoint.sharded import CheckpointWeights, open_weights
from fxpar.checkpoint.untied import Untied
from fxpar.checkpoint.weights import DTYPES, Weights, compare
from fxpar.errors import CheckpointError, RankError
from fxpar.runtime import optimizer as optimizers
from fxpar.runtime import training
from fxpar.runtime.assemble import Read, fill
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.rank import Rank
from fxpar.runtime.training import Training


def restore(
    rank: Rank, folder: Path, *, optimizer: Optimizer | None = None, scheduler: Any = None
) -> int | None:
    """Read a checkpoint that a run of the same model saved, at whatever mesh, into a rank; return its step number.

    Parameters and persistent buffers keep their places. See `resume` for the rest. After an error all is as it was.
    """
    layout, ties = layout_of(rank), rank.manifest.ties
    read = reader(layout, rank.groups.rank, rank.manifest, folder)
    state = _State.read(rank, folder, optimizer, scheduler)
    held = layout.tensors.keys() | {name for name, first in ties.items() if first in layout.tensors}
    for module in (rank, rank.prepare):
        if module is not None:
            fill(module, read, rank.padding, held)
    return state.put(rank, optimizer, scheduler)


def resume(
    rank: Rank, folder: Path, *, optimizer: Optimizer | None = None, scheduler: Any = None
) -> int | None:
    """Restore all of a checkpoint but parameters and buffers, which the rank was loaded with; return its step number.

    `optimizer` may have its parameters in another order and in other groups than the one that was saved: they are known
    by name. What is not given is not restored. The states of torch's own generators are where they were the same on all
    ranks, or the mesh is the same. Raises CheckpointError that lists all that does not fit.
    """
    return _State.read(rank, folder, optimizer, scheduler).put(rank, optimizer, scheduler)


@dataclass
class _State:
    """What a rank restores besides parameters and buffers, read and held against what it is put into."""

    saved: Training
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    generators: dict[torch.device, Tensor]

    @staticmethod
    def read(rank: Rank, folder: Path, optimizer: Optimizer | None, scheduler: Any) -> _State:
        """Raises CheckpointError; nothing is changed."""
        saved = Training.read(folder)
        _check(folder, saved, optimizer, scheduler)
        packed: dict[str, Any] = {}
        if optimizer is not None and saved.optimizer is not None:
            weights, layout = CheckpointWeights(folder), layout_of(rank)
            kept = replace(saved.optimizer, slots=training.slots(weights.index))
            in_order = scheduler is not None
            packed = optimizers.packed(optimizer, rank, kept, weights, layout, in_order=in_order)
        state = plain.decoded(saved.scheduler["state"]) if saved.scheduler is not None else {}
        return _State(saved, packed, state, training.own_generators(saved, rank))

    def put(self, rank: Rank, optimizer: Optimizer | None, scheduler: Any) -> int | None:
        """Let everything go on from here."""
        if optimizer is not None:
            optimizers.put(optimizer, self.optimizer)
        if scheduler is not None:
            scheduler.load_state_dict(self.scheduler)
        rank.randomness.load_state_dict(self.saved.randomness)
        for device, state in self.generators.items():
            training.set_generator(device, state)
        return self.saved.step


def _check(folder: Path, saved: Training, optimizer: Optimizer | None, scheduler: Any) -> None:
    """Raise CheckpointError where something is to be restored that was not saved."""
    problems = []
    if optimizer is not None and saved.optimizer is None:
        problems.append("it has no optimizer")
    was = saved.scheduler["class"] if saved.scheduler is not None else None
    if scheduler is not None and was is None:
        problems.append("it has no scheduler")
    elif scheduler is not None and was != optimizers.kind(scheduler):
        problems.append(f"its scheduler is a {was}, the one to be restored is a {optimizers.kind(scheduler)}")
    if problems:
        raise CheckpointError(f"{folder} lacks some of what is to be restored", details=problems)


def layout_of(rank: Rank) -> Index:
    """The index of a checkpoint in a rank's layout. Raises RankError where that is not known."""
    if rank.layout is None:
        raise RankError("the layout of this module is not known", details=["load it by fxpar.load"])
    return rank.layout()


def reader(layout: Index, rank: int, manifest: Manifest, path: Path) -> Read:
    """Reads a rank's part of each tensor of a layout from a checkpoint, in either layout and of any mesh.

    Raises CheckpointError that lists all names, shapes and dtypes that do not fit.
    """
    opened = open_weights(path)
    weights = Untied(opened, manifest.ties)
    shapes = {name: tensor.shape for name, tensor in layout.tensors.items()}
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in layout.tensors.items()}
    try:
        compare(shapes, weights, [*manifest.tensors, *manifest.ties], dtypes)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit the partition", details=error.details) from None
    if isinstance(opened, CheckpointWeights):
        stages = {stage.index for stage in manifest.stages_of(rank)}
        mine = (name for name in layout.tensors if stages.intersection(manifest.tensors[name].stages))
        opened.check({weights.key(name): layout.parts_of(rank, name) for name in mine})
    return partial(_part, layout, rank, manifest.ties, weights)


def _part(layout: Index, rank: int, ties: Mapping[str, str], weights: Weights, name: str) -> Tensor:
    name = ties.get(name, name)
    return read_parts(weights, name, layout.parts_of(rank, name), DTYPES[layout.tensors[name].dtype])
