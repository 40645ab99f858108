"""Saving what the ranks hold as a checkpoint, in the layout that the partition was written in."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import torch

from fxpar.checkpoint import index as indexes
from fxpar.checkpoint import shardfile
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.shardfile import Entry
from fxpar.emit.folder import LAYOUT
from fxpar.emit.staging import staged
from fxpar.runtime.groups import find
from fxpar.runtime.load import checked_text
from fxpar.runtime.rank import Rank

#: Files of a partition that belong into no checkpoint.
_OWN = (".py", ".safetensors", ".yaml")


def save(rank: Rank, folder: Path, target: Path) -> None:
    """Write the parameters and persistent buffers of all ranks to a new folder; all ranks call it.

    `folder` is the partition's, `target` lies on a file system that all ranks share. Every rank that is the first to
    hold a file writes it; the folder appears at the end. Raises EmitError if `target` exists.
    """
    layout = _layout(rank, folder)
    with ExitStack() as stack:
        place = target.with_name(f".{target.name}.ranks")
        if rank.groups.rank == 0:
            shutil.rmtree(place, ignore_errors=True)
            final = stack.enter_context(staged(target))
            place.mkdir()
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        _meet(rank)
        file = layout.ranks[rank.groups.rank]
        if layout.ranks.index(file) == rank.groups.rank:
            _write(rank, layout, place / file)
        _meet(rank)
        if rank.groups.rank == 0:
            _gather(rank, layout, folder, place, final)
    _meet(rank)


def _layout(rank: Rank, folder: Path) -> Index:
    name = indexes.NAME if indexes.NAME in rank.manifest.files else LAYOUT
    return Index.from_json(checked_text(folder, rank.manifest, name), name)


def _write(rank: Rank, layout: Index, path: Path) -> None:
    tensors = _tensors(rank)
    names = layout.names(path.name)
    entries = [Entry(name, tensors[name].dtype, tuple(tensors[name].shape)) for name in names]
    shardfile.write(path, entries, tensors.__getitem__, indexes.metadata(layout, path.name))


def _tensors(rank: Rank) -> dict[str, torch.Tensor]:
    modules = [module for module in (rank.prepare, rank.stage) if module is not None]
    return {
        name: rank.padding.real(name, tensor)
        for module in modules
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


def _gather(rank: Rank, layout: Index, folder: Path, place: Path, final: Path) -> None:
    """Put everything into the folder that is about to appear; the index comes last."""
    for file in place.iterdir():
        file.rename(final / file.name)
    for name in rank.manifest.files:
        if Path(name).suffix not in _OWN and name not in (indexes.NAME, LAYOUT):
            shutil.copyfile(folder / name, final / name)
    (final / indexes.NAME).write_text(layout.to_json(), encoding="utf-8")


def _meet(rank: Rank) -> None:
    """Wait until all ranks are here."""
    device = next((t.device for t in rank.stage.parameters()), torch.device("cpu"))
    find(rank.groups.world).all_reduce(torch.zeros(1, device=device))
