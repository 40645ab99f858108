"""All passes in their order: from a captured program and a plan to the modules that the ranks run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any

from torch import fx

from fxpar.capture.node import aten, is_op
from fxpar.capture.program import Program, sizes_of
from fxpar.clock import Clock
from fxpar.collector import paused
from fxpar.dynamic.fit import Fit
from fxpar.dynamic.merge import Merge
from fxpar.emit import manifest as manifests
from fxpar.emit.manifest import TIME
from fxpar.emit.module import emit_module
from fxpar.errors import MixingError, PlanError, ShardError, Violations
from fxpar.mesh import Mesh
from fxpar.pipeline import stages as pipeline
from fxpar.pipeline.check import check
from fxpar.pipeline.cut import Cuts, choose, cut_at
from fxpar.pipeline.stages import Stage
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook
from fxpar.runtime.manifest import Manifest
from fxpar.schedule import places
from fxpar.shard.batch import Batch, cut_batch
from fxpar.shard.placement import Shard
from fxpar.shard.shard import shard
from fxpar.shard.sharded import Sharded


@dataclass
class Partition:
    """A model split by a plan: the result of every pass, the texts of the modules, and the manifest."""

    plan: Plan
    program: Program
    sharded: Sharded
    batch: Batch | None
    cuts: Cuts
    stages: list[Stage]
    manifest: Manifest
    texts: dict[str, str]
    """The emitted modules by file name: `stage_0.py`, ..., and `prepare.py` for several microbatches."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each pass took; `export` is the part of `capture` that was `torch.export`."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of the ranks; a dim of the plan's that is larger than what it splits is in pieces here."""
        return self.sharded.mesh


def split(program: Program, plan: Plan, *, source: str = "", clock: Clock | None = None) -> Partition:
    """Split a captured program by a plan. Nothing is written and no weight is touched.

    `source` is how the user named the model. Raises PlanError, RuleError, ShardError or PipelineError for a plan that
    does not fit, all violations that were found at once.
    """
    with paused():
        return _split(program, plan, source, clock or Clock())


def _split(program: Program, plan: Plan, source: str, clock: Clock) -> Partition:
    with clock.measure("axes"):
        rulebook = Rulebook.load(plan.rules or ())
    sharded, plan = _sharded(program, plan, rulebook, clock)
    made = _made(sharded, plan, clock)
    others = [
        _made(_sharded_in_time(other, plan, rulebook, clock), plan, clock, made.cuts)
        for other in program.others
    ]
    with clock.measure("emit"):
        manifest = _manifest(made, plan, source)
        if others:
            manifest = _merged(made, others, manifest, [_manifest(o, plan, source) for o in others], plan)
        texts = _texts(program, manifest, made.batch, made.stages, plan)
    return Partition(
        plan, program, made.sharded, made.batch, made.cuts, made.stages, manifest, texts, clock.seconds
    )


@dataclass
class _Made:
    """What the passes made of a program at one set of sizes."""

    sharded: Sharded
    batch: Batch | None
    cuts: Cuts
    stages: list[Stage]
    loss: str | None

    @property
    def graphs(self) -> list[fx.Graph]:
        return [stage.graph for stage in self.stages] + ([self.batch.prepare] if self.batch else [])


def _made(sharded: Sharded, plan: Plan, clock: Clock, known: Cuts | None = None) -> _Made:
    """Cut what was sharded; with `known`, where the same program is cut at other sizes."""
    with clock.measure("shard"):
        several = (plan.microbatches or 1) > 1
        batch = cut_batch(sharded.graph, TIME) if several else None
    with clock.measure("pipeline"):
        graph = batch.rest if batch else sharded.graph
        if known is not None:
            cuts = cut_at(graph, known)
        else:
            cuts = choose(graph, plan.stages, plan.cut_at, plan.place("cut.at" if plan.cut else "pp"))
        loss, ranks = manifests.loss_name(sharded), places(plan.schedule or "1f1b", plan.pp, plan.vpp)
        stages = pipeline.build(cuts, outputs=sharded.program.output_names, loss=loss, ranks=ranks)
        check(graph, stages)
    return _Made(sharded, batch, cuts, stages, loss)


def _merged(
    made: _Made, others: list[_Made], manifest: Manifest, manifests_of: list[Manifest], plan: Plan
) -> Manifest:
    """Let the graphs hold sizes that follow from those of the dynamic axes; the manifest that does so too."""
    program = made.sharded.program
    points = [sizes_of(each, program.dynamic) for each in (program, *program.others)]
    merge = Merge(Fit(points, plan.parts))
    for graph, same in zip(made.graphs, zip(*(other.graphs for other in others))):
        merge.graphs(graph, same)
    merged: Manifest = merge.data(manifest, manifests_of)
    _check_tables(made.sharded)
    multiples = merge.multiples()
    table = made.sharded.table
    stages = [stage.graph for stage in made.stages]
    dynamic = tuple(
        manifests.dynamic(axis, multiples[axis.name], table, made.sharded.mesh, plan, stages)
        for axis in program.dynamic
    )
    return replace(merged, dynamic=dynamic, conditions=program.conditions)


def _check_tables(sharded: Sharded) -> None:
    """Raise ShardError for a table whose rows are split though rows may be asked of it that it has not.

    A whole table fails there, as that of the model does; of a split one every rank would take another to have the row.
    """
    for name in sorted(sharded.program.unbounded & sharded.tensors.keys()):
        laid = sharded.tensors[name]
        if any(isinstance(state, Shard) and state.dim == 0 for state in laid.held.values()):
            raise ShardError(
                f"the rows of `{name}` cannot be split over {', '.join(laid.split_over)}: it is not known how many "
                "are needed at other sizes of the dynamic axes",
                details=[f"used at {laid.source}", "leave its rows whole, or leave an axis out of `dynamic`"],
            )


def resolved(program: Program, plan: Plan) -> Plan:
    """The plan with a number of microbatches that fits the program's batch.

    Not every input need begin with samples: a number that was asked for may divide the longest alone.
    """
    sizes = _first_dims(program)
    try:
        return plan.resolve(gcd(*sizes) or 1)
    except PlanError:
        if plan.microbatches is None or len(sizes) < 2:
            raise
        return plan.resolve(max(sizes))


def _sharded(program: Program, plan: Plan, rulebook: Rulebook, clock: Clock) -> tuple[Sharded, Plan]:
    """The sharded program; in fewer microbatches, or one, where no number was asked for.

    Fewer where samples belong together, as pairs do in a batch of halves; one where all samples are mixed.
    """
    fitting = resolved(program, plan)
    notes = [f"output `{name}` is a {kind}: None stands for it" for name, kind in program.omitted.items()]
    while True:
        try:
            sharded = _sharded_in_time(program, fitting, rulebook, clock)
            sharded.notes += notes
            return sharded, fitting
        except PlanError as error:
            count = fitting.microbatches or 1
            if plan.microbatches is not None or count == 1 or not _is_of_time(error):
                raise
            fitting = replace(plan, microbatches=max(n for n in range(1, count) if count % n == 0))
        except MixingError as error:
            if plan.microbatches is not None:
                raise
            fitting = replace(plan, microbatches=1)
            notes += [f"one microbatch, so stages wait for each other: {error.what}, {error.details[0]}"]


def _is_of_time(error: PlanError) -> bool:
    """Whether nothing is wrong but the number of microbatches."""
    errors = error.errors if isinstance(error, Violations) else (error,)
    return all(f"over `{TIME}`" in each.what for each in errors)


def _sharded_in_time(program: Program, plan: Plan, rulebook: Rulebook, clock: Clock) -> Sharded:
    timed = {TIME: plan.microbatches} if plan.microbatches and plan.microbatches > 1 else {}
    sharded = shard(
        program,
        plan.mesh,
        rulebook.table(plan),
        rulebook.ops,
        rulebook.names,
        composites=rulebook.composites,
        fusions=rulebook.fusions,
        timed=timed,
        clock=clock,
    )
    if timed:
        _check_time(sharded)
        _check_updates(sharded)
    return sharded


def _check_time(sharded: Sharded) -> None:
    """Raise MixingError for a loss that is no sum over the microbatches: each of them would count the whole of it."""
    name = manifests.loss_name(sharded)
    if name is None:
        return
    position = sharded.program.output_names.index(name)
    results: Any = sharded.program.graph.output_node().args[0]
    laid, node = sharded.outputs[position], results[position]
    if laid is not None and TIME not in laid.held:
        axes = " or ".join(f"`{row.axis}`" for row in sharded.table.values() if TIME in row.over)
        why = f"no axis of the inputs is known as {axes}" if axes else f"no row of the table has `{TIME}`"
        where = f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})"
        raise MixingError(
            f"microbatches split nothing that the loss depends on: {why}",
            details=[where, "use one microbatch"],
        )


def _check_updates(sharded: Sharded) -> None:
    """Raise MixingError for a buffer that is read and changed: a step would change it once for each microbatch."""
    graph = sharded.program.graph
    updates = {node.meta["update"]: node for node in graph.nodes if "update" in node.meta}
    for node in graph.find_nodes(op="placeholder"):
        update = updates.get(node.meta["name"])
        if update is not None and any(_reads(user, node) for user in node.users if user is not update):
            where = f"{update.meta.get('module') or 'the model'} ({update.meta.get('source')})"
            raise MixingError(
                f"each microbatch would change the buffer `{node.meta['name']}`, which it reads",
                details=[where, "use one microbatch"],
            )


def _reads(user: fx.Node, buffer: fx.Node) -> bool:
    """Whether an op needs the values of a buffer, and not just its shape, as what it is filled with does."""
    return not is_op(user, aten.full_like, aten.zeros_like, aten.copy) or buffer in user.args[1:]


def _first_dims(program: Program) -> set[int]:
    """The first dimensions of all inputs."""
    values = [n.meta["val"] for n in program.graph.find_nodes(op="placeholder") if n.meta["kind"] == "input"]
    return {int(value.shape[0]) for value in values if getattr(value, "shape", ())}


def _manifest(made: _Made, plan: Plan, source: str) -> Manifest:
    sharded, stages, graphs = made.sharded, made.stages, made.graphs
    tensors, outputs = manifests.tensors(sharded, stages), manifests.outputs(sharded)
    return Manifest(
        source=source,
        hash=_hash(sharded.program, plan),
        mesh=dict(sharded.mesh.sizes),
        schedule=plan.schedule or "1f1b",
        microbatches=plan.microbatches or 1,
        training=sharded.program.training,
        seed=plan.seed,
        random=manifests.needs_seed(graphs, made.batch),
        inputs=manifests.inputs(sharded.program),
        positional=sharded.program.positional,
        prepared=manifests.prepared(made.batch),
        outputs=outputs,
        loss=made.loss,
        stages=tuple(stage.spec() for stage in stages),
        tensors=tensors,
        ties=dict(sharded.program.ties),
        groups=manifests.groups(graphs, tensors.values(), outputs, stages),
        opaque=sharded.program.leaves.paths,
        versions=manifests.versions(),
        notes=tuple(sharded.notes),
    )


def _hash(program: Program, plan: Plan) -> str:
    """A hash of the captured graph, the shapes of its tensors and the plan."""
    digest = hashlib.sha256(plan.to_yaml().encode())
    digest.update(str(program.graph).encode())
    for name, tensor in program.tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    return digest.hexdigest()[:16]


def _texts(
    program: Program, manifest: Manifest, batch: Batch | None, stages: list[Stage], plan: Plan
) -> dict[str, str]:
    model = program.modules.get("", "model")
    summary = ", ".join(f"{dim} {size}" for dim, size in plan.mesh.sizes.items() if size > 1) or "one rank"

    def emitted(graph: fx.Graph, name: str, title: str) -> str:
        return emit_module(
            graph,
            class_name=name,
            title=title,
            modules=program.modules,
            ties=program.ties,
            persistent=program.persistent,
            plan=summary,
            source=manifest.hash,
        )

    texts = {
        f"stage_{stage.index}.py": emitted(
            stage.graph, f"Stage{stage.index}", f"Stage {stage.index} of {stage.count} of {model}"
        )
        for stage in stages
    }
    if batch:
        texts["prepare.py"] = emitted(
            batch.prepare, "Prepare", f"What the microbatches of {model} need of a whole batch"
        )
    return texts
