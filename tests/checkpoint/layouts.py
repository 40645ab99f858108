"""Checkpoints in made-up layouts: each dim of each tensor is cut into ranges, and files take combinations of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from fxpar.checkpoint import dtypes, layout
from fxpar.checkpoint.index import Index, Indexed, Part, metadata
from fxpar.checkpoint.layout import Slot

#: For each file of a dim's cut: the ranges (start, stop) that it has, in the order in which they lie there.
Cut = Sequence[Sequence[tuple[int, int]]]


def even(size: int, parts: int) -> Cut:
    """Ranges of one size, as far as that goes."""
    edges = [size * number // parts for number in range(parts + 1)]
    return [[(start, stop)] for start, stop in pairwise(edges)]


def fused(sizes: Sequence[int], parts: int) -> Cut:
    """Several tensors behind each other, each cut evenly: a file has a range of each."""
    start, cuts = 0, []
    for size in sizes:
        cuts.append([[(a + start, b + start) for a, b in ranges] for ranges in even(size, parts)])
        start += size
    return [[ranges for cut in cuts for ranges in cut[number]] for number in range(parts)]


def whole(size: int) -> Cut:
    """One range."""
    return [[(0, size)]]


def parts(ranges: Sequence[Sequence[tuple[int, int]]]) -> tuple[Part, ...]:
    """The boxes of a file that has these ranges of each dim."""
    local = []
    for each in ranges:
        at = 0
        local.append([])
        for start, stop in each:
            local[-1].append((start, stop - start, at))
            at += stop - start
    return tuple(
        Part(*(tuple(numbers) for numbers in zip(*place))) if place else Part((), (), ())
        for place in product(*local)
    )


def tensor(dtype: str, cuts: Sequence[Cut], copies: int = 1, *, prefix: str = "f", first: int = 0) -> Indexed:
    """A tensor that is cut along each dim; each combination of ranges lies in `copies` files."""
    shape = tuple(max((stop for ranges in cut for _, stop in ranges), default=0) for cut in cuts)
    places = [parts(ranges) for ranges in product(*cuts)] * copies
    files = {f"{prefix}{first + number}.safetensors": place for number, place in enumerate(places)}
    return Indexed(dtype, shape, tuple(f"{size}" for size in shape), {}, files)


def index(tensors: Mapping[str, Indexed]) -> Index:
    """The index of tensors; every file is that of a rank."""
    files = sorted({file for each in tensors.values() for file in each.files})
    return Index("model.py", "0", {"tp": len(files)}, tuple(files), dict(tensors))


def values(indexed: Indexed, seed: int = 0) -> np.ndarray:
    """Random bytes of the whole tensor: [..., bytes of the last dim]."""
    count = dtypes.size(indexed.dtype, indexed.shape)
    return np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)


def local_bytes(indexed: Indexed, file: str, data: np.ndarray) -> bytes:
    """What a file has of a tensor of whole bytes, by plain indexing."""
    item = dtypes.BITS[indexed.dtype] // 8
    given = data.reshape(*indexed.shape, item)
    local = np.zeros((*indexed.local_shape(file), item), np.uint8)
    for part in indexed.files[file]:
        here = tuple(slice(at, at + size) for at, size in zip(part.local, part.sizes))
        there = tuple(slice(at, at + size) for at, size in zip(part.offsets, part.sizes))
        local[here] = given[there]
    return local.tobytes()


def contents(indexes: Index, file: str, whole: Mapping[str, np.ndarray], *, hf: bool = False) -> bytes:
    """A file, byte by byte."""
    held = {name: indexes.tensors[name] for name in indexes.names(file)}
    slots = layout.ordered(Slot(name, t.dtype, t.local_shape(file)) for name, t in held.items())
    body = b"".join(local_bytes(held[slot.name], file, whole[slot.name]) for slot in slots)
    return layout.header(slots, {"format": "pt"} if hf else metadata(indexes, file)) + body


def write(
    folder: Path, indexes: Index, whole: Mapping[str, np.ndarray], *, crc32: bool = False, hf: bool = False
) -> Index:
    """Write a checkpoint; return its index, with checksums if wished for."""
    folder.mkdir(parents=True)
    for file in indexes.files:
        if indexes.names(file):
            (folder / file).write_bytes(contents(indexes, file, whole, hf=hf))
    if hf:
        where = {name: next(iter(each.files)) for name, each in indexes.tensors.items()}
        if set(where.values()) != {"model.safetensors"}:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        return indexes
    if crc32:
        indexes = with_sums(indexes, whole)
    (folder / "fxpar.index.json").write_text(indexes.to_json())
    return indexes


def with_sums(indexes: Index, whole: Mapping[str, np.ndarray]) -> Index:
    """The index with the checksums of all tensors."""
    tensors = {
        name: replace(
            each, crc32={file: zlib.crc32(local_bytes(each, file, whole[name])) for file in each.files}
        )
        for name, each in indexes.tensors.items()
    }
    return replace(indexes, tensors=tensors)
