"""What is written of a model that was split: the result of all passes, as far as a folder and a summary need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fxpar.capture.program import Program
from fxpar.pipeline.cut import Cuts
from fxpar.pipeline.stages import Stage
from fxpar.plan import Plan
from fxpar.runtime.manifest import Manifest
from fxpar.shard.batch import Batch
from fxpar.shard.sharded import Sharded


class Product(Protocol):
    """A `fxpar.passes.Partition`."""

    plan: Plan
    program: Program
    sharded: Sharded
    batch: Batch | None
    cuts: Cuts
    stages: list[Stage]
    manifest: Manifest
    texts: dict[str, str]
    seconds: dict[str, float]


def held(product: Product) -> list[list[str]]:
    """What each rank along `pp` has: its stages' parameters, buffers and constants, and those to prepare a batch."""
    common = [product.batch.prepare] if product.batch else []
    ranks = range(product.manifest.mesh.get("pp", 1))
    graphs = ([stage.graph for stage in product.stages if stage.rank == rank] for rank in ranks)
    return [_names(product, [*own, *common]) for own in graphs]


def _names(product: Product, graphs: Sequence[object]) -> list[str]:
    found = {
        node.meta["name"]
        for graph in graphs
        for node in graph.find_nodes(op="placeholder")  # type: ignore[attr-defined]
        if node.meta["kind"] in ("parameter", "buffer", "constant")
    }
    return [name for name in product.sharded.tensors if name in found]


def kinds(product: Product) -> Mapping[str, str]:
    """`parameter`, `buffer` or `constant` for every tensor."""
    return {n.meta["name"]: n.meta["kind"] for n in product.program.graph.find_nodes(op="placeholder")}
