"""Ways to give a checkpoint another layout. Each imports what it needs before it is timed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fxpar.checkpoint.index import Index
from fxpar.checkpoint.target import target

#: Reads a folder, writes a folder, with that many files.
Run = Callable[[Path, Path, int], object]


class Way(NamedTuple):
    """Imports what a way needs and gives its function; whether it splits, or only merges; whether sources have sums."""

    prepare: Callable[[], Run]
    splits: bool = True
    summed: bool = False


def settle(folder: Path) -> None:
    """Wait until all files of a folder, and the folder, are on disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def fxpar(checksums: bool) -> Run:
    """fxpar's resharder; `checksums` writes those of the target, and checks those that the source has."""
    from fxpar.checkpoint.reshard import reshard

    def run(source: Path, made: Path, files: int) -> None:
        reshard(source, made, lambda index: target(index, {"tp": files}), checksums=checksums)

    return run


def slices() -> Run:
    """Slices of safetensors files, and one file after the other saved."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    def read(opened: dict[str, Any], given: Index, wanted: Index, file: str, name: str) -> torch.Tensor:
        box = wanted.tensors[name].files[file][0]
        held = given.tensors[name].files
        if len(held) == 1:
            place = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes))
            piece: torch.Tensor = opened[next(iter(held))].get_slice(name)[place]
            return piece.contiguous()
        columns = any(parts[0].offsets[1] for parts in held.values())
        return torch.cat([opened[each].get_slice(name)[:] for each in held], int(columns))

    def run(source: Path, made: Path, files: int) -> None:
        given = Index.read(source)
        wanted = target(given, {"tp": files})
        opened = {file: safe_open(source / file, framework="pt") for file in given.files}
        made.mkdir()
        for file in wanted.files:
            tensors = {name: read(opened, given, wanted, file, name) for name in wanted.names(file)}
            save_file(tensors, made / file)
            del tensors
        settle(made)

    return run


def dcp() -> Run:
    """torch.distributed.checkpoint, in one process: loads whole tensors, and saves them."""
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    def run(source: Path, made: Path, files: int) -> None:
        shapes = {name: tensor.shape for name, tensor in Index.read(source).tensors.items()}
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it is one process is meant so.
            load(state, storage_reader=HuggingFaceStorageReader(str(source)), no_dist=True)
            writer = HuggingFaceStorageWriter(str(made), thread_count=files)
            save(state, storage_writer=writer, no_dist=True)
        settle(made)

    return run


def consolidate() -> Run:
    """torch's script that makes whole tensors of what `HuggingFaceStorageWriter` has written."""
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    def run(source: Path, made: Path, files: int) -> None:
        made.mkdir()
        names = dict.fromkeys(Index.read(source).tensors, files)
        consolidate_safetensors_files(str(source), str(made), names, num_threads=2)
        settle(made)

    return run


WAYS = {
    "fxpar": Way(partial(fxpar, False)),
    "fxpar, crc32": Way(partial(fxpar, True)),
    "fxpar, and checked": Way(partial(fxpar, True), summed=True),
    "safetensors slices": Way(slices),
    "torch DCP": Way(dcp, splits=False),
    "torch consolidate": Way(consolidate, splits=False),
}
