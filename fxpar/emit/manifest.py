"""Making the manifest of a partition from what the passes found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from fxpar.capture.program import DynamicAxis, Program
from fxpar.mesh import GroupIndex, GroupName, Mesh, joined
from fxpar.pipeline.stages import Stage
from fxpar.plan import Plan
from fxpar.runtime.manifest import (
    AxisSpec,
    CutSpec,
    InputSpec,
    OutputSpec,
    PreparedSpec,
    TensorSpec,
    dtype_name,
)
from fxpar.shard.batch import Batch
from fxpar.shard.placement import Shard, cuts_of, layout
from fxpar.shard.position import SEED, STEP_SEED
from fxpar.shard.sharded import Laid, Sharded
from fxpar.shard.table import Table
from fxpar.size import Size

#: The pseudo mesh dim of microbatches.
TIME = "mb"


def tensors(sharded: Sharded, stages: Sequence[Stage]) -> dict[str, TensorSpec]:
    """Every parameter, buffer and constant that some stage holds."""
    holders: dict[str, list[int]] = {}
    for stage in stages:
        for node in stage.graph.find_nodes(op="placeholder"):
            if node.meta["kind"] in ("parameter", "buffer", "constant"):
                holders.setdefault(node.meta["name"], []).append(stage.index)
    kinds = {n.meta["name"]: n.meta["kind"] for n in sharded.program.graph.find_nodes(op="placeholder")}
    return {
        name: _tensor(sharded, sharded.tensors[name], kinds[name], tuple(at)) for name, at in holders.items()
    }


def _tensor(sharded: Sharded, laid: Laid, kind: str, stages: tuple[int, ...]) -> TensorSpec:
    program = sharded.program
    words = [f"Shard({s.dim}, {sharded.naming.word(s.factor)}) over {m}" for m, s in _shards(laid)]
    return TensorSpec(
        laid.name,
        kind,
        dtype_name(laid.dtype),
        laid.shape,
        laid.local_shape,
        laid.words,
        ", ".join(words) or "whole",
        laid.split_over,
        laid.reduce,
        stages,
        laid.name in program.persistent,
        program.tensors[laid.name].requires_grad,
        laid.rule,
        laid.source,
        {m: s.dim for m, s in _shards(laid) if s.factor.size % laid.sizes[m]},
        laid.overlaps if kind == "parameter" else (),
    )


def _shards(laid: Laid) -> Iterator[tuple[str, Shard]]:
    return ((m, s) for m, s in laid.held.items() if isinstance(s, Shard))


def inputs(program: Program) -> tuple[InputSpec, ...]:
    """The arguments of the model."""
    vals = {n.name: n.meta["val"] for n in program.graph.find_nodes(op="placeholder")}
    return tuple(
        InputSpec(
            entry.name,
            entry.placeholder,
            dtype_name(vals[entry.placeholder].dtype),
            tuple(vals[entry.placeholder].shape),
        )
        if entry.placeholder
        else InputSpec(entry.name, value=entry.value, default=entry.default)
        for entry in program.inputs
    )


def dynamic(
    axis: DynamicAxis, multiple: int, table: Table, mesh: Mesh, plan: Plan, graphs: Iterable[fx.Graph]
) -> AxisSpec:
    """A dynamic axis that has to be a multiple of some number; in words, what splits it.

    It may be dealt out unevenly to microbatches where no `graphs` of stages reckon with how large the others are.
    """
    sizes = {**mesh.sizes, TIME: plan.microbatches or 1}
    row = next(
        (row for name, row in table.items() if axis.name in (name, *_instances(name, axis.name))), None
    )
    over = [m for m in (row.over if row else ()) if sizes.get(m, 1) > 1]
    optional = row.optional if row else frozenset()
    whole = prod(sizes[m] for m in over) == multiple
    required = over if whole else [m for m in over if m not in optional]
    known = multiple > 1 and prod(sizes[m] for m in required) == multiple
    dealt = sizes[TIME] if known and TIME in required and not _reckons(graphs, axis.name) else 1
    said = [m for m in required if known and not (m == TIME and dealt > 1)]
    words = " x ".join(f"{'microbatches' if m == TIME else m} {sizes[m]}" for m in said)
    return AxisSpec(axis.name, axis.size, multiple, words, axis.least, axis.most, axis.reason, dealt)


def _reckons(graphs: Iterable[fx.Graph], axis: str) -> bool:
    """Whether something is reckoned with a size of the axis, or with the number of microbatches as shares of a mean.

    A microbatch knows its own size alone: it would make a value of the whole batch in as many times that.
    """
    nodes = [node for graph in graphs for node in graph.nodes]
    return any(TIME in node.meta.get("shares", ()) for node in nodes) or any(
        isinstance(arg, Size) and axis in arg.polynomial.axes
        for node in nodes
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or not _is_cut(node)
        for arg in _flat((node.args, node.kwargs))
    )


def _is_cut(node: fx.Node) -> bool:
    """Whether each microbatch has its part of a node's value."""
    return isinstance(node.meta.get("held", {}).get(TIME), Shard)


def _instances(axis: str, name: str) -> list[str]:
    """The name itself if it is one of several instances of an axis: `sequence_2`."""
    return [name] if name.startswith(f"{axis}_") and name.removeprefix(f"{axis}_").isdigit() else []


def prepared(batch: Batch | None) -> tuple[PreparedSpec, ...]:
    """What each microbatch is given, in the order in which the module `prepare` returns it."""
    return tuple(
        PreparedSpec(each.name, CutSpec(TIME, each.dim, each.layout) if each.dim is not None else None)
        for each in (batch.prepared if batch else ())
    )


def outputs(sharded: Sharded) -> tuple[OutputSpec, ...]:
    """The outputs of the model, and how to make them whole."""
    plain = _results(sharded.graph)
    return tuple(map(_output, sharded.program.output_names, sharded.outputs, plain))


def _output(name: str, laid: Laid | None, value: Any) -> OutputSpec:
    if laid is None:
        return OutputSpec(name, value=None if isinstance(value, fx.Node) else value)
    gather, held = [], dict(laid.held)
    for mesh_dim in [m for m, _ in reversed([*_shards(laid)]) if m != TIME]:
        gather.append(_cut(laid, held, mesh_dim))
        del held[mesh_dim]
    time: CutSpec | str | None = None
    if TIME in held:
        time = _cut(laid, held, TIME) if isinstance(held[TIME], Shard) else "sum"
    return OutputSpec(name, dtype_name(laid.dtype), laid.shape, tuple(gather), time)


def _cut(laid: Laid, held: Mapping[str, Any], mesh_dim: str) -> CutSpec:
    shard = held[mesh_dim]
    cuts = cuts_of(held, shard.dim, laid.sizes)
    return CutSpec(mesh_dim, shard.dim, tuple(layout(laid.dims[shard.dim], shard.factor, cuts)))


def _results(graph: fx.Graph) -> tuple[Any, ...]:
    results = graph.output_node().args[0]
    assert isinstance(results, tuple)
    return results


def loss_name(sharded: Sharded) -> str | None:
    """The output that is the loss: `loss` if there is one, else the first floating-point scalar with a gradient."""
    found = [
        laid_name
        for laid_name, laid, node in zip(
            sharded.program.output_names, sharded.outputs, _results(sharded.graph)
        )
        if laid
        and not laid.shape
        and laid.dtype.is_floating_point
        and isinstance(node, fx.Node)
        and node.meta.get("grad")
    ]
    return "loss" if "loss" in found else next(iter(found), None)


def groups(
    graphs: Iterable[fx.Graph],
    specs: Iterable[TensorSpec],
    outs: Iterable[OutputSpec],
    stages: Sequence[Stage],
) -> tuple[str, ...]:
    """Every kind of group that any rank needs, sorted."""
    kinds = {cut.mesh_dim for out in outs for cut in out.gather}
    for spec in specs:
        kinds |= {joined(spec.reduce)} if spec.reduce else set()
        kinds |= {overlap.mesh_dim for overlap in spec.overlaps}
    kinds |= {kind for stage in stages for kind in stage.spec().groups()}
    if any(stage.rank for stage in stages):
        kinds.add("pp")
    for graph in graphs:
        for node in graph.nodes:
            kinds |= {
                str(arg) for arg in _flat((node.args, node.kwargs)) if isinstance(arg, GroupName | GroupIndex)
            }
    return tuple(sorted(kinds))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def needs_seed(graphs: Iterable[fx.Graph], batch: Batch | None) -> bool:
    """Whether a forward call draws random numbers, in a stage or in what prepares a batch."""
    given = [n for g in graphs for n in g.find_nodes(op="placeholder") if n.meta["kind"] == "prepared"]
    early = batch.prepare.find_nodes(op="placeholder") if batch else ()
    return any(n.name == SEED for n in given) or any(n.name == STEP_SEED for n in early)


def versions() -> dict[str, str]:
    """The versions that wrote the manifest."""
    return {"torch": torch.__version__.split("+")[0]}
