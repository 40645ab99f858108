"""Saving what the ranks hold as a checkpoint, in the layout that the partition has; all ranks write one folder.

checkpoint/
  model-pp0-tp0.safetensors, ...       parameters and persistent buffers
  optimizer-pp0-tp0.safetensors, ...   what the optimizer keeps of them, in the same boxes
  training.json                        what else a run needs to go on
  config.json, tokenizer ...           as they came with the model
  fxpar.index.json                     the boxes of all files, written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fxpar.checkpoint import index as indexes
from fxpar.checkpoint import shardfile
from fxpar.checkpoint.commit import settle, sync
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.shardfile import Entry
from fxpar.checkpoint.stored import open_folder
from fxpar.checkpoint.weights import DTYPES
from fxpar.emit.staging import staged
from fxpar.errors import CheckpointError
from fxpar.runtime import optimizer as optimizers
from fxpar.runtime import training
from fxpar.runtime.agree import agreed, exchange
from fxpar.runtime.rank import Rank
from fxpar.runtime.restore import layout_of
from fxpar.runtime.training import Training


def save(
    rank: Rank,
    target: Path,
    *,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    step: int | None = None,
) -> None:
    """Write the parameters and persistent buffers of all ranks, and the state of training, to a new folder.

    All ranks call it; `target` lies on a file system that they share. Every rank that is the first to hold a file
    writes it; the folder appears at the end. `step` is the number of steps that were made. Where any rank fails, all
    raise, and there is no folder: CheckpointError for state that cannot be saved exactly, EmitError if `target` exists.
    """
    with ExitStack() as stack:
        with agreed(rank):
            layout = layout_of(rank)
            mine = _collect(rank, optimizer, scheduler, step)
        with agreed(rank):
            first = rank.groups.rank == 0
            own = str(stack.enter_context(staged(target, force=None))) if first else ""
        place = Path(exchange(rank, own)[0])
        with agreed(rank):
            crc32 = _write(rank, layout, mine, place)
        sums = exchange(rank, json.dumps(crc32))
        with agreed(rank):
            if first:
                _commit(rank, layout, place, sums)
                stack.close()
                sync(target.absolute().parent)


def _collect(rank: Rank, optimizer: Optimizer | None, scheduler: Any, step: int | None) -> Training:
    return Training(
        step,
        dict(rank.manifest.mesh),
        optimizers.collect(optimizer, rank) if optimizer is not None else None,
        training.scheduled(scheduler) if scheduler is not None else None,
        rank.randomness.state_dict(),
        [training.generators(rank)],
    )


def _write(rank: Rank, layout: Index, mine: Training, place: Path) -> dict[str, dict[str, int]]:
    """Write this rank's part of everything, and a note of it to the first rank; checksums by file and tensor."""
    if not place.is_dir():
        raise CheckpointError(
            f"{place} is not there", details=["all ranks save to a file system that they share"]
        )
    number = rank.groups.rank
    file = layout.ranks[number]
    writes = layout.ranks.index(file) == number
    kept, crc32 = mine.optimizer, {}
    if writes:
        crc32[file] = _write_file(place / file, layout, _tensors(rank).__getitem__)
    if kept is not None and writes:
        state = replace(layout, tensors=optimizers.indexed(layout, kept.slots))
        if state.names(other := optimizers.state_file(file)):
            crc32[other] = _write_file(place / other, state, partial(_state, state, kept))
    note = (
        mine if writes or kept is None else replace(mine, optimizer=optimizers.Kept(kept.kind, kept.groups))
    )
    (place / _note(number)).write_text(note.to_json(slots=True), encoding="utf-8")
    return crc32


def _note(number: int) -> str:
    return f"rank-{number}.json"


def _write_file(path: Path, index: Index, value: Callable[[str], Tensor]) -> dict[str, int]:
    held = {name: index.tensors[name] for name in index.names(path.name)}
    entries = [Entry(name, DTYPES[t.dtype], t.local_shape(path.name)) for name, t in held.items()]
    return shardfile.write(path, entries, value, indexes.metadata(index, path.name)).crc32


def _state(index: Index, kept: optimizers.Kept, name: str) -> Tensor:
    of = index.tensors[name].of
    return kept.tensors[of][name.removesuffix(f"/{of}")]


def _tensors(rank: Rank) -> Mapping[str, Tensor]:
    ties = rank.manifest.ties
    modules = [module for module in (rank.prepare, rank) if module is not None]
    return {
        ties.get(name, name): rank.padding.real(name, tensor)
        for module in modules
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def _commit(rank: Rank, layout: Index, place: Path, sums: Sequence[str]) -> None:
    """Write what belongs to all ranks, the index with the ranks' checksums last, and read all headers again.

    What is there has to be whole.
    """
    notes = [place / _note(number) for number in range(rank.groups.mesh.world)]
    whole = training.merged([Training.from_json(note.read_text(encoding="utf-8")) for note in notes])
    for note in notes:
        note.unlink()
    for path in rank.companions:
        shutil.copyfile(path, place / path.name)
    kept = whole.optimizer
    state = optimizers.indexed(layout, kept.slots) if kept is not None else {}
    crc32 = {file: each for text in sums for file, each in json.loads(text).items()}
    index = replace(layout, tensors={**layout.tensors, **state}).summed(crc32)
    (place / training.NAME).write_text(whole.to_json(), encoding="utf-8")
    (place / indexes.NAME).write_text(index.to_json(), encoding="utf-8")
    open_folder(place)
    settle(place)
