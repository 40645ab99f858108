"""What `fxpar partition` says of its result: a table of stages, and the same as plain data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from math import prod
from typing import Any

from fxpar.axes.columns import aligned, size_text
from fxpar.emit.product import Product
from fxpar.pipeline.cost import flops
from fxpar.pipeline.layers import layer_counts
from fxpar.pipeline.stages import Stage
from fxpar.shard.placement import Shard
from fxpar.shard.table import Row

_NUMBERED = re.compile(r"(.*?)\.?(\d+)(\..*)?")


def summary(product: Product, files: Mapping[str, int] | None = None) -> dict[str, Any]:
    """What a partition is, as plain data. `files` are those that were written, with their bytes."""
    manifest = product.manifest
    return {
        "model": manifest.source,
        "hash": manifest.hash,
        "mesh": dict(manifest.mesh),
        "vpp": manifest.virtual,
        "schedule": manifest.schedule,
        "microbatches": manifest.microbatches,
        "split_fraction": product.sharded.fraction,
        "axes": _axes(product),
        "dynamic": [asdict(axis) for axis in manifest.dynamic],
        "stages": _stages(product),
        "imbalance": product.cuts.imbalance,
        "rank_imbalance": _rank_imbalance(product),
        "notes": [*manifest.notes, *_idle(product)],
        "files": dict(files or {}),
        "seconds": dict(product.seconds),
    }


def _axes(product: Product) -> list[dict[str, Any]]:
    """The rows of the table by which something of the model is split, with the parameters among it."""
    splits = _splits(product)
    rows = ((axis, [dim for dim in row.over if (axis, dim) in splits]) for axis, row in _table(product))
    return [
        {"axis": axis, "over": over, "parameters": _split_by(product, axis)} for axis, over in rows if over
    ]


def _table(product: Product) -> Iterable[tuple[str, Row]]:
    return product.sharded.table.items()


def _splits(product: Product) -> set[tuple[str | None, str]]:
    """Each axis with each mesh dim over which some value or tensor of the model is split by it."""
    sharded = product.sharded
    layouts = [node.meta.get("held", {}) for node in sharded.graph.nodes]
    layouts += [laid.held for laid in sharded.tensors.values()]
    return {
        (sharded.naming.axis(state.factor), dim)
        for held in layouts
        for dim, state in held.items()
        if isinstance(state, Shard) and product.manifest.mesh.get(dim, 1) > 1
    }


def _idle(product: Product) -> list[str]:
    """A note for each mesh dim that splits nothing."""
    busy = {"pp", *(dim for _, dim in _splits(product))}
    idle = [(dim, size) for dim, size in product.manifest.mesh.items() if size > 1 and dim not in busy]
    rows = {dim: [axis for axis, row in _table(product) if dim in row.over] for dim, _ in idle}
    return [
        f"{dim} {size} splits nothing: its ranks all do the same work\n"
        f"  the model has no {' or '.join(rows[dim]) or 'axis with a row for it'} that can be split; "
        "`fxpar axes` prints what it has"
        for dim, size in idle
    ]


def _split_by(product: Product, axis: str) -> int:
    naming, specs = product.sharded.naming, product.manifest.tensors
    return sum(
        any(isinstance(s, Shard) and naming.axis(s.factor) == axis for s in laid.held.values())
        for name, laid in product.sharded.tensors.items()
        if name in specs and specs[name].kind == "parameter"
    )


def _stages(product: Product) -> list[dict[str, Any]]:
    """A row for each stage; `chunk` counts the stages of its rank."""
    cuts, ranks = product.cuts, _ranks(product)
    layers = layer_counts(cuts.flow, cuts.positions)
    return [
        _stage(product, stage)
        | {"rank": ranks[stage.index], "chunk": ranks[: stage.index].count(ranks[stage.index])}
        | {"layers": layers[stage.index]}
        for stage in product.stages
    ]


def _ranks(product: Product) -> list[int]:
    """The coordinate along `pp` of the rank that runs each stage."""
    ranks = product.manifest.mesh["pp"]
    return [getattr(stage.spec(), "rank", stage.index % ranks) for stage in product.stages]


def _rank_imbalance(product: Product) -> float:
    """By how much the slowest rank exceeds the mean, with all stages that it runs."""
    costs: dict[int, int] = {}
    for rank, cost in zip(_ranks(product), product.cuts.costs):
        costs[rank] = costs.get(rank, 0) + cost
    return max(costs.values()) * len(costs) / max(sum(costs.values()), 1) - 1


def _stage(product: Product, stage: Stage) -> dict[str, Any]:
    tensors = product.manifest.tensors
    sent = product.cuts.sent_bytes
    return {
        "stage": stage.index,
        "modules": _modules(stage),
        "parameters": sum(prod(tensors[name].shape) for name in stage.parameters()),
        "bytes_per_rank": stage.parameter_bytes,
        "flops_per_rank": sum(flops(node) for node in stage.graph.nodes if node.op == "call_function"),
        "live_bytes": stage.costs.kept_bytes,
        "sent_bytes": sent[stage.index] if stage.index < len(sent) else 0,
        "costs": asdict(stage.costs),
    }


def _modules(stage: Stage) -> list[str]:
    """The modules of a stage that hold parameters, in few words: `blocks.0-5`, and `embeddings` for its parts."""
    paths = [name.rpartition(".")[0] for name in stage.parameters()]
    layers = [match for path in paths if (match := _NUMBERED.fullmatch(path))]
    above = {stem for match in layers for stem in _ancestors(match[1])}
    alone = Counter(path.rpartition(".")[0] for path in dict.fromkeys(paths) if not _NUMBERED.fullmatch(path))
    several = {parent for parent, count in alone.items() if parent and count > 1 and parent not in above}
    short = dict.fromkeys(_shortened(path, several) for path in paths)
    return list(_ranges(path for path in short if path))


def _ancestors(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _shortened(path: str, several: Collection[str]) -> str:
    """The layer that a module belongs to, or its parent where that has several such modules."""
    if match := _NUMBERED.fullmatch(path):
        return f"{match[1]}.{match[2]}"
    parent = path.rpartition(".")[0]
    return parent if parent in several else path


def _ranges(paths: Iterable[str]) -> Iterable[str]:
    run: tuple[str, int, int] | None = None
    for path in paths:
        stem, _, last = path.rpartition(".")
        number = int(last) if last.isdecimal() else -1
        if run and number == run[2] + 1 and stem == run[0]:
            run = (stem, run[1], number)
            continue
        if run:
            yield _range(run)
        run = (stem, number, number) if number >= 0 else None
        if run is None:
            yield path
    if run:
        yield _range(run)


def _range(run: tuple[str, int, int]) -> str:
    stem, first, last = run
    return f"{stem}.{first}" if first == last else f"{stem}.{first}-{last}"


def text(data: Mapping[str, Any]) -> str:
    """What a summary says, for people."""
    mesh = " x ".join(f"{dim} {size}" for dim, size in data["mesh"].items() if size > 1) or "one rank"
    batches = f", {data['microbatches']} microbatches, {data['schedule']}" if data["microbatches"] > 1 else ""
    stages = f", {data['vpp']} stages a rank" if data["vpp"] > 1 else ""
    blocks = [f"{data['model'] or 'model'}: {mesh}{stages}{batches}"]
    if data["axes"]:
        blocks.append(_axes_text(data))
    if data["dynamic"]:
        blocks.append(_dynamic_text(data["dynamic"]))
    blocks.append(_stages_text(data))
    if data["notes"]:
        blocks.append(
            "\n".join(["notes", *(f"  {line}" for note in data["notes"] for line in note.splitlines())])
        )
    if data["files"]:
        rows = [[name, size_text(size)] for name, size in data["files"].items()]
        blocks.append(f"files\n{aligned(rows, '  ')}")
    return "\n\n".join(blocks)


def _axes_text(data: Mapping[str, Any]) -> str:
    rows = [
        [row["axis"], " ".join(row["over"]), _count(row["parameters"], "parameter")] for row in data["axes"]
    ]
    share = f"{data['split_fraction']:.0%} of the parameters' bytes are split"
    return f"axes ({share})\n{aligned(rows, '  ')}"


def _dynamic_text(axes: Iterable[Mapping[str, Any]]) -> str:
    """The sizes that the dynamic axes may have."""
    rows = []
    for axis in axes:
        split = f" ({axis['split']})" if axis["split"] else ""
        least = axis["multiple"] // axis["dealt"]
        multiple = f"a multiple of {least}{split}" if least > 1 else "any size"
        most = f", at most {axis['most']}" if axis["most"] is not None else ""
        rows.append([axis["name"], f"{multiple}, at least {axis['least']}{most}"])
    return f"dynamic\n{aligned(rows, '  ')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def _stages_text(data: Mapping[str, Any]) -> str:
    """The stages: parameters of the model, and what a rank holds, computes, keeps and sends for one microbatch."""
    stages = data["stages"]
    several = any(stage["chunk"] for stage in stages)
    layers = any(stage["layers"] for stage in stages)
    columns: dict[str, list[str]] = {"stage": [str(stage["stage"]) for stage in stages]}
    if several:
        columns["rank"] = [str(stage["rank"]) for stage in stages]
        columns["chunk"] = [str(stage["chunk"]) for stage in stages]
    columns["modules"] = [", ".join(stage["modules"]) for stage in stages]
    if layers:
        columns["layers"] = [str(stage["layers"]) for stage in stages]
    columns |= {
        "parameters": [f"{stage['parameters']:,}" for stage in stages],
        "on a rank": [size_text(stage["bytes_per_rank"]) for stage in stages],
        "flops": [f"{stage['flops_per_rank']:.3g}" for stage in stages],
        "live": [size_text(stage["live_bytes"]) for stage in stages],
        "sent": [size_text(stage["sent_bytes"]) if stage["sent_bytes"] else "" for stage in stages],
    }
    slow = f"the slowest is {data['imbalance']:.0%} above the mean"
    ranks = f", the slowest rank {data['rank_imbalance']:.0%}" if several else ""
    title = "stages" if len(stages) == 1 else f"stages ({slow}{ranks})"
    return f"{title}\n{aligned([list(columns), *map(list, zip(*columns.values()))], '  ')}"
