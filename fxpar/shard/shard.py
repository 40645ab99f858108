"""The shard pass: from a captured program and a table of splits to a graph that each rank runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from fxpar.axes import infer, naming, oprule
from fxpar.axes.composite import Composite
from fxpar.axes.factor import resolve, text
from fxpar.axes.links import Dims
from fxpar.axes.selected import selected
from fxpar.capture.program import Program
from fxpar.clock import Clock
from fxpar.mesh import Mesh
from fxpar.shard.assign import assign
from fxpar.shard.check import check
from fxpar.shard.fuse import fuse
from fxpar.shard.fusion import Fusion
from fxpar.shard.mixed import decide
from fxpar.shard.overlap import overlaps
from fxpar.shard.pieces import cut_mesh
from fxpar.shard.placement import REPLICATE, Placement, Shard
from fxpar.shard.problem import Problem, lazy_nodes
from fxpar.shard.rewrite import Rewrite
from fxpar.shard.sharded import Laid, Sharded
from fxpar.shard.sums import ordered_sums
from fxpar.shard.table import Table
from fxpar.shard.walk import Decision


def shard(
    program: Program,
    mesh: Mesh,
    table: Table,
    ops: Mapping[str, oprule.OpRule],
    names: Sequence[naming.NamingRule],
    *,
    composites: Sequence[Composite] = (),
    fusions: Sequence[Fusion] = (),
    timed: Mapping[str, int] | None = None,
    clock: Clock | None = None,
) -> Sharded:
    """Split a program over a mesh by a table of splits.

    `timed` are further dims that are steps in time, not ranks: `{"mb": 4}` for four microbatches. `clock` takes the
    time of `axes` and of `shard`. Raises PlanError for splits that do not divide, all at once, and ShardError where
    the graph cannot be split so.
    """
    clock = clock or Clock()
    whole = program
    program = replace(program, graph=ordered_sums(program.graph, ops))
    with clock.measure("axes"):
        found, named = _axes(program, ops, names, composites)
    with clock.measure("shard"):
        sharded = _shard(program, mesh, table, found, named, timed or {}, fusions)
    return sharded if program.graph is whole.graph else _of(sharded, whole)


def _of(sharded: Sharded, program: Program) -> Sharded:
    """The same, said of the nodes of the graph that was given instead of those of a copy, by their names."""
    nodes = {node.name: node for node in program.graph.nodes}
    draws = tuple(
        replace(
            draw,
            node=nodes[draw.node.name],
            operands={new: (nodes[old.name], part) for new, (old, part) in draw.operands.items()},
        )
        for draw in sharded.draws
    )
    return replace(sharded, program=program, draws=draws)


def _axes(
    program: Program,
    ops: Mapping[str, oprule.OpRule],
    names: Sequence[naming.NamingRule],
    composites: Sequence[Composite],
) -> tuple[infer.Inference, naming.Naming]:
    found = infer.infer(program.graph, ops)
    inputs = [
        n for n in program.graph.find_nodes(op="placeholder") if n.meta["kind"] == "input" and _is_tensor(n)
    ]
    return found, naming.name(found, inputs, names, composites)


def _shard(
    program: Program,
    mesh: Mesh,
    table: Table,
    found: infer.Inference,
    named: naming.Naming,
    timed: Mapping[str, int],
    fusions: Sequence[Fusion],
) -> Sharded:
    given = table
    mesh, table = cut_mesh(mesh, given, named)
    sizes = {m: s for m, s in {**mesh.sizes, **timed}.items() if s > 1 and m in _used(table)}
    chosen = selected(found)
    lazy = lazy_nodes(program.graph, chosen)
    problem = Problem(program.graph, found, named, table, sizes, lazy, chosen, timed=frozenset(timed))
    notes = assign(problem)
    decisions = {}
    for mesh_dim in sizes:
        decisions[mesh_dim] = decide(problem, mesh_dim)
    rewrite = Rewrite(problem, decisions)
    graph = rewrite.run()
    fuse(graph, fusions)
    sharded = Sharded(program, mesh, table, graph, found, named, {}, (), tuple(rewrite.draws), notes, given)
    sharded.tensors = {n.meta["name"]: _laid(problem, decisions, n) for n in _stored(program.graph)}
    sharded.outputs = _outputs(problem, graph)
    check(sharded)
    return sharded


def _used(table: Table) -> set[str]:
    return {mesh_dim for row in table.values() for mesh_dim in row.over}


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.Tensor)


def _stored(graph: fx.Graph) -> list[fx.Node]:
    return [
        n for n in graph.find_nodes(op="placeholder") if n.meta["kind"] in ("parameter", "buffer", "constant")
    ]


def _laid(problem: Problem, decisions: Mapping[str, Decision], node: fx.Node) -> Laid:
    states = {m: d.state(node) for m, d in decisions.items()}
    reduce = tuple(
        m for m, s in states.items() if s is REPLICATE and m not in problem.timed and node.meta.get("grad")
    )
    laid = _lay(
        problem, node, node.meta["name"], {m: s for m, s in states.items() if isinstance(s, Shard)}, reduce
    )
    return replace(laid, overlaps=overlaps(laid.dims, laid.held, laid.sizes))


def _lay(
    problem: Problem, node: fx.Node, name: str, held: Mapping[str, Placement], reduce: tuple[str, ...] = ()
) -> Laid:
    dims: Dims = tuple(resolve(dim) for dim in problem.found.dims[node][0])
    axes = dict.fromkeys(problem.naming.axis(s.factor) for s in held.values() if isinstance(s, Shard))
    rule = ", ".join(problem.table[axis].source for axis in axes if axis)
    words = tuple(text(dim, problem.naming.word) for dim in dims)
    value = node.meta["val"]
    source = next((u.meta["source"] for u in node.users if u.meta.get("source")), "")
    return Laid(name, value.dtype, tuple(value.shape), dims, words, held, problem.sizes, reduce, rule, source)


def _outputs(problem: Problem, graph: fx.Graph) -> tuple[Laid | None, ...]:
    olds = problem.graph.output_node().args[0]
    news = graph.output_node().args[0]
    laid: list[Laid | None] = []
    for position, (old, new) in enumerate(zip(olds, news)):  # type: ignore[arg-type]
        if isinstance(old, fx.Node) and isinstance(new, fx.Node) and _is_tensor(old):
            laid.append(_lay(problem, old, str(position), new.meta["held"]))
        else:
            laid.append(None)
    return tuple(laid)
