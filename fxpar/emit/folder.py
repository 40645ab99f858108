"""Writing the folder of a partition.

    out/
      plan.yaml                     the plan, every default written out
      manifest.json                 what the runtime has to know; the sha256 of every other file
      stage_0.py, ..., prepare.py   the emitted modules
      model-pp0-tp0.safetensors     parameters and buffers of a checkpoint, one file a distinct shard
      fxpar.index.json              which boxes of which tensors these files hold
      buffers-pp0.safetensors       what is in no checkpoint: constants, and buffers that are not persistent
      example.safetensors           the example batch
      run.py                        torchrun --nproc-per-node N out/run.py
      config.json, tokenizer ...    as they came with the model

Without weights there are no files of the model; `fxpar.layout.json` then holds the index of those that would be.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fxpar.checkpoint import index as indexes
from fxpar.checkpoint import shardfile
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.local import read
from fxpar.checkpoint.shardfile import Entry, Written
from fxpar.checkpoint.untied import Untied
from fxpar.checkpoint.weights import DTYPES, TensorWeights, Weights, compare
from fxpar.emit.product import Product, held, kinds
from fxpar.emit.shards import index
from fxpar.emit.staging import staged
from fxpar.errors import EmitError
from fxpar.runtime.manifest import Manifest

MANIFEST, EXAMPLE, RUN, PLAN = "manifest.json", "example.safetensors", "run.py", "plan.yaml"


def write(
    partition: Product,
    folder: str | Path,
    weights: Weights | None,
    force: bool = False,
    *,
    example: Mapping[str, torch.Tensor] | None = None,
    companions: Sequence[Path] = (),
) -> Manifest:
    """Write a partition to a folder, which appears whole at the end or not at all; return its manifest.

    Of `weights` only boxes are read, one tensor of one file after the other, and cast to the dtype of the model.
    `example` is a batch by the names of the model's inputs, `companions` are files to copy. An existing folder of
    fxpar's is replaced with `force`. Equal partitions give equal bytes. Raises EmitError or CheckpointError.
    """
    model, buffers = layout(partition), _besides(partition, weights is not None)
    if weights is not None:
        weights = _fitting(partition, model, weights)
    with staged(Path(folder), force) as new:
        files = _write_texts(new, _texts(partition) | {RUN: run_script(partition.manifest)})
        files |= _copy(new, companions)
        if weights is not None:
            made, model = _write_shards(new, model, weights)
            files |= made
        files |= _write_shards(new, buffers, TensorWeights(partition.program.tensors))[0]
        files |= _write_example(new, example or {})
        files |= _write_texts(new, {indexes.NAME if weights is not None else indexes.LAYOUT: model.to_json()})
        manifest = replace(
            partition.manifest,
            ranks=_ranks(partition, (model, buffers), files),
            files=dict(sorted(files.items())),
        )
        _write_texts(new, {MANIFEST: manifest.to_json()})
    return manifest


def layout(product: Product) -> Index:
    """The index of the files that a checkpoint of this partition has."""
    persistent = product.program.persistent
    return index(product, [[name for name in rank if name in persistent] for rank in held(product)], "model")


def _besides(product: Product, with_weights: bool) -> Index:
    """The index of what has to be written besides.

    Without weights parameters will be drawn, but buffers keep the values that the model was built with.
    """
    kind, persistent = kinds(product), product.program.persistent
    given = persistent if with_weights else {name for name in persistent if kind[name] == "parameter"}
    return index(product, [[name for name in rank if name not in given] for rank in held(product)], "buffers")


def _fitting(product: Product, model: Index, weights: Weights) -> Weights:
    """The weights by the names of the index. Raises CheckpointError for all names and sizes that do not fit."""
    weights = Untied(weights, product.program.ties)
    known = [*product.program.tensors, *product.program.ties]
    compare({name: tensor.shape for name, tensor in model.tensors.items()}, weights, known)
    return weights


def _texts(product: Product) -> dict[str, str]:
    return {PLAN: product.plan.to_yaml(), **product.texts}


def _write_texts(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _copy(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    files = {}
    for path in sorted(paths):
        if (folder / path.name).exists():
            raise EmitError(f"{path.name} comes with the model, and is a name that fxpar writes")
        shutil.copyfile(path, folder / path.name)
        with path.open("rb") as file:
            files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


def _write_shards(folder: Path, shards: Index, weights: Weights) -> tuple[dict[str, str], Index]:
    """Write every file of an index that holds anything; their sha256, and the index with the checksums of tensors."""
    written = {
        file: _write_shard(folder / file, shards, weights) for file in shards.files if shards.names(file)
    }
    crc32 = {file: each.crc32 for file, each in written.items()}
    return {file: each.sha256 for file, each in written.items()}, shards.summed(crc32)


def _write_shard(path: Path, shards: Index, weights: Weights) -> Written:
    held = {name: shards.tensors[name] for name in shards.names(path.name)}
    entries = [Entry(name, DTYPES[t.dtype], t.local_shape(path.name)) for name, t in held.items()]

    def part(name: str) -> torch.Tensor:
        tensor = held[name]
        return read(weights, name, tensor.files[path.name], DTYPES[tensor.dtype])

    return shardfile.write(path, entries, part, indexes.metadata(shards, path.name))


def _write_example(folder: Path, example: Mapping[str, torch.Tensor]) -> dict[str, str]:
    if not example:
        return {}
    entries = [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in example.items()]
    written = shardfile.write(folder / EXAMPLE, entries, partial(_value, example), {"format": "pt"})
    return {EXAMPLE: written.sha256}


def _value(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    return tensors[name]


def _ranks(
    product: Product, families: Sequence[Index], written: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """The files that each rank reads its tensors from: its own, and those of others that it shares some with."""
    mesh, names = product.manifest.grid, held(product)
    found = []
    for rank in range(mesh.world):
        read = [each.ranks[rank] for each in families]
        for each in families:
            own = (name for name in names[mesh.coordinate(rank).get("pp", 0)] if name in each.tensors)
            read += [each.file_of(rank, name) for name in own]
        found.append(tuple(file for file in dict.fromkeys(read) if file in written))
    return tuple(found)


def run_script(manifest: Manifest) -> str:
    """The text of run.py."""
    world = manifest.grid.world
    launch = f"torchrun --nproc-per-node {world}" if world > 1 else "python"
    return f'''"""Trains this partition, or evaluates it: {launch} run.py --help"""

from pathlib import Path

from fxpar.runtime.train import main

if __name__ == "__main__":
    main(Path(__file__).parent)
'''
