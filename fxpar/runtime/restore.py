"""Going on where a run was stopped: parameters, optimizer, scheduler, random numbers and step from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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

    Parameters and persistent buffers keep their places. See `resume` for the rest.
    """
    layout, ties = layout_of(rank), rank.manifest.ties
    read = reader(layout, rank.groups.rank, rank.manifest, folder)
    step = resume(rank, folder, optimizer=optimizer, scheduler=scheduler)
    held = layout.tensors.keys() | {name for name, first in ties.items() if first in layout.tensors}
    for module in (rank.stage, rank.prepare):
        if module is not None:
            fill(module, read, rank.padding, held)
    return step


def resume(
    rank: Rank, folder: Path, *, optimizer: Optimizer | None = None, scheduler: Any = None
) -> int | None:
    """Restore all of a checkpoint but parameters and buffers, which the rank was loaded with; return its step number.

    `optimizer` may have its parameters in another order and in other groups than the one that was saved: they are known
    by name. What is not given is not restored. The states of torch's own generators are where they were the same on all
    ranks, or the mesh is the same. Raises CheckpointError that lists all that does not fit.
    """
    saved = Training.read(folder)
    _check(folder, saved, optimizer, scheduler)
    if optimizer is not None and saved.optimizer is not None:
        weights = CheckpointWeights(folder)
        kept = replace(saved.optimizer, slots=training.slots(weights.index))
        in_order = scheduler is not None
        optimizers.restore(optimizer, rank, kept, weights, layout_of(rank), in_order=in_order)
    if scheduler is not None and saved.scheduler is not None:
        scheduler.load_state_dict(plain.decoded(saved.scheduler["state"]))
    rank.randomness.load_state_dict(saved.randomness)
    device = next((t.device for t in rank.stage.parameters()), torch.device("cpu"))
    training.restore_generators(saved, rank, device)
    return saved.step


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
    weights = Untied(open_weights(path), manifest.ties)
    shapes = {name: tensor.shape for name, tensor in layout.tensors.items()}
    dtypes = {name: DTYPES[tensor.dtype] for name, tensor in layout.tensors.items()}
    compare(shapes, weights, [*manifest.tensors, *manifest.ties], dtypes)
    return partial(_part, layout, layout.ranks[rank], manifest.ties, weights)


def _part(layout: Index, file: str, ties: Mapping[str, str], weights: Weights, name: str) -> Tensor:
    name = ties.get(name, name)
    tensor = layout.tensors[name]
    return read_parts(weights, name, tensor.files[file], DTYPES[tensor.dtype])
