"""Which files the ranks' tensors go to, and which boxes of which tensor each file holds.

The ranks of a stage share a file unless a mesh dim that tells them apart splits some tensor of that stage:

    model-pp0-tp0  model-pp0-tp1  model-pp1        for any number of dp and cp ranks, if stage 1 is whole over tp
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxpar.checkpoint import notation
from fxpar.checkpoint.apart import apart
from fxpar.checkpoint.index import Index, Indexed, Part, file_name
from fxpar.checkpoint.shardfile import CODES
from fxpar.emit.product import Product
from fxpar.emit.usage import layers
from fxpar.errors import CheckpointError
from fxpar.shard.placement import Shard
from fxpar.shard.sharded import Laid


def index(product: Product, names: Sequence[Sequence[str]], family: str) -> Index:
    """The index of files whose names begin with `family`; `names` are the tensors that each `pp` rank has.

    A tensor that several of them have is in the files of the first.
    """
    manifest, laid, used = product.manifest, product.sharded.tensors, layers(product.sharded.graph)
    spots = [_spot(product, rank, names) for rank in range(manifest.grid.world)]
    ranks = tuple(file_name(family, spot) for spot in spots)
    tensors = {}
    for name in dict.fromkeys(name for rank in names for name in rank):
        first = next(place for place, held in enumerate(names) if name in held)
        holders = {file: spot for file, spot in zip(ranks, spots) if spot["pp"] == first}
        files = apart(laid[name].shape, {file: _parts(laid[name], spot) for file, spot in holders.items()})
        tensors[name] = _indexed(product, laid[name], files, used.get(name, (0,)))
    ties = {name: target for name, target in manifest.ties.items() if target in tensors}
    rows = {axis: tuple(row.words.values()) for axis, row in product.sharded.given.items() if row.over}
    extends = product.sharded.naming.extensions
    return Index(manifest.source, manifest.hash, dict(manifest.mesh), ranks, tensors, ties, rows, extends)


def _spot(product: Product, rank: int, names: Sequence[Sequence[str]]) -> dict[str, int]:
    """A rank's coordinates on those mesh dims that make a difference to what it holds."""
    coordinate = product.manifest.grid.coordinate(rank)
    place = coordinate.get("pp", 0)
    splits = {dim for name in names[place] for dim in product.sharded.tensors[name].split_over}
    return {"pp": place} | {dim: at for dim, at in coordinate.items() if dim in splits}


def _parts(laid: Laid, spot: Mapping[str, int]) -> tuple[Part, ...]:
    return tuple(Part(box.offset, box.sizes, box.local) for box in laid.boxes(spot))


def _indexed(
    product: Product, laid: Laid, files: Mapping[str, tuple[Part, ...]], at: tuple[int, ...]
) -> Indexed:
    if laid.dtype not in CODES:
        raise CheckpointError(f"`{laid.name}` has dtype {laid.dtype}, which safetensors cannot hold")
    several = [dim for dim, size in product.manifest.mesh.items() if size > 1 and dim != "pp"]
    placement = {dim: _word(product, laid, dim) for dim in several}
    dims = notation.written(laid.dims, product.sharded.naming.axis)
    return Indexed(CODES[laid.dtype], laid.shape, dims, placement, files, at)


def _word(product: Product, laid: Laid, mesh_dim: str) -> str:
    state = laid.held.get(mesh_dim)
    if isinstance(state, Shard):
        return f"Shard({state.dim}, {product.sharded.naming.word(state.factor)})"
    return "Replicate"
