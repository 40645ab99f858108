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
    """The parameters, buffers and constants of each stage, and those that every rank needs to prepare a batch."""
    common = [product.batch.prepare] if product.batch else []
    return [_names(product, [stage.graph, *common]) for stage in product.stages]


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
