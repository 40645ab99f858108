"""`fxpar explain`: what is known of a parameter, a value or a collective of a partition, and the rule behind it.

A name is that of a tensor (`layers.0.mlp.up.weight`), of an input or output, of a value as the emitted modules call
it (`hidden`, or `layers.0.reduce_scatter_2` in the function of a layer), or the path of a module, for all that it
computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import fx

from fxpar.axes.columns import aligned
from fxpar.axes.schema import op_name
from fxpar.emit.module import value_names
from fxpar.errors import ModelError
from fxpar.mesh import GroupName
from fxpar.passes import Partition
from fxpar.runtime.manifest import OutputSpec, TensorSpec, dtype_name
from fxpar.shard.overlap import sum_text
from fxpar.shard.placement import Shard

#: What the backward of each collective is, where its arguments do not say it.
BACKWARD = {
    "sum_gradient": "all_reduce",
    "all_reduce": "nothing",
    "all_reduce_both": "all_reduce",
    "reduce_scatter": "all_gather",
    "all_to_all": "all_to_all",
    "keep_on_first": "nothing",
    "keep_gradient_on_first": "zero but on one rank",
    "keep_both_on_first": "zero but on one rank",
}
FORWARD = {
    "sum_gradient": "nothing",
    "all_reduce_both": "all_reduce",
    "keep_on_first": "zero but on one rank",
    "keep_gradient_on_first": "nothing",
    "keep_both_on_first": "zero but on one rank",
}
ARGUED = ("all_gather", "slice")
NO_RULE = "no row of the table splits it"
#: How many near names an unknown one is answered with.
NEAR = 3


@dataclass(frozen=True)
class Explanation:
    """One thing with its facts, in the order in which they are told; empty ones are left out."""

    name: str
    kind: str
    facts: Mapping[str, Any]

    def text(self) -> str:
        """The facts, one a line."""
        rows = [[f"  {key}", _words(value)] for key, value in self.facts.items() if value not in ("", (), [])]
        return f"{self.kind} {self.name}\n{aligned(rows)}"

    def plain(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {"name": self.name, "kind": self.kind, **self.facts}


def to_text(found: Sequence[Explanation]) -> str:
    """Several explanations, a blank line between."""
    return "\n\n".join(each.text() for each in found)


def to_json(found: Sequence[Explanation]) -> str:
    """Several explanations as a JSON list."""
    return json.dumps([each.plain() for each in found], indent=2)


def explain(partition: Partition, name: str) -> list[Explanation]:
    """Everything that has that name. Raises ModelError, with near names, if nothing has."""
    manifest = partition.manifest
    values = [*_values(partition)]
    found = []
    if spec := manifest.tensors.get(manifest.ties.get(name, name)):
        found.append(_tensor(spec, manifest.ties, rule_of(partition, spec.name)))
    found += [_output(spec) for spec in manifest.outputs if spec.name == name]
    found += [_value(*each) for each in values if name in (each[2], _last(each[2]))]
    found = found or [_value(*each) for each in values if each[1].meta.get("module") == name]
    if not found:
        raise ModelError(f"nothing is called `{name}`", details=_near(name, partition, values))
    return found


#: Where a value is computed, its node, and what it is called there.
Named = tuple[str, fx.Node, str]


def _values(partition: Partition) -> Iterator[Named]:
    """Every value of every emitted module."""
    modules = partition.program.modules
    graphs = [(f"stage_{stage.index}.py", stage.graph, f"Stage{stage.index}") for stage in partition.stages]
    if partition.batch is not None:
        graphs.insert(0, ("prepare.py", partition.batch.prepare, "Prepare"))
    for file, graph, class_name in graphs:
        for node, name in value_names(graph, class_name, modules).items():
            yield file, node, name


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _near(name: str, partition: Partition, values: Sequence[Named]) -> list[str]:
    manifest = partition.manifest
    known = [*manifest.tensors, *manifest.ties, *(spec.name for spec in manifest.outputs)]
    known += [each[2] for each in values] + [_last(each[2]) for each in values]
    known += [each[1].meta.get("module", "") for each in values]
    near = get_close_matches(name, dict.fromkeys(filter(None, known)), n=NEAR)
    return [
        *(f"did you mean `{other}`?" for other in near),
        "a name is that of a parameter, a buffer, an input, an output, a module, or a value in stage_*.py",
    ]


def rule_of(partition: Partition, name: str) -> str:
    """The row of the table that placed a tensor; of one whose gradient is summed, the rows that split its uses."""
    laid = partition.sharded.tensors[name]
    if laid.rule:
        return laid.rule
    placeholders = partition.sharded.graph.find_nodes(op="placeholder")
    users = [user for node in placeholders if node.meta["name"] == name for user in node.users]
    states = (user.meta.get("held", {}).get(mesh_dim) for mesh_dim in laid.reduce for user in users)
    rules = dict.fromkeys(_row(partition, state) for state in states if isinstance(state, Shard))
    return f"{NO_RULE}; what it is used in is split by {', '.join(rules)}" if rules else NO_RULE


def _row(partition: Partition, shard: Shard) -> str:
    axis, table = partition.sharded.naming.axis(shard.factor), partition.sharded.table
    return table[axis].source if axis in table else str(axis)  # type: ignore[index]


def _tensor(spec: TensorSpec, ties: Mapping[str, str], rule: str) -> Explanation:
    facts = {
        "dims": spec.dims,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "placement": spec.placement,
        "on a rank": list(spec.local_shape),
        "gradient": _gradient(spec),
        "stages": list(spec.stages),
        "also called": [other for other, first in ties.items() if first == spec.name],
        "in checkpoints": "yes" if spec.persistent else "no",
        "rule": rule,
        "source": spec.source,
    }
    return Explanation(spec.name, spec.kind, facts)


def _gradient(spec: TensorSpec) -> str:
    if spec.kind != "parameter" or not spec.learns:
        return ""
    sums = [*spec.reduce, *map(sum_text, spec.overlaps)]
    sums += ["the stages that hold it"] if len(spec.stages) > 1 else []
    return f"summed over {' and '.join(sums)} once a step" if sums else "complete on every rank"


def _output(spec: OutputSpec) -> Explanation:
    gather = [f"Shard({cut.dim}) over {cut.mesh_dim}" for cut in reversed(spec.gather)]
    facts = {
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "placement": ", ".join(gather) or "whole",
        "microbatches": "summed" if spec.time == "sum" else "joined" if spec.time else "",
    }
    return Explanation(spec.name, "output", facts)


def _value(file: str, node: fx.Node, name: str) -> Explanation:
    value = node.meta.get("val")
    exchange = _exchange(node)
    facts = {
        "dims": node.meta.get("dims", ()),
        "on a rank": list(value.shape) if isinstance(value, torch.Tensor) else "",
        "dtype": dtype_name(value.dtype) if isinstance(value, torch.Tensor) else "",
        "placement": node.meta.get("placement") or "the same on every rank",
        "made by": op_name(node) if node.op == "call_function" else str(node.meta.get("kind", node.op)),
        **exchange,
        "module": node.meta.get("module") or "the model itself",
        "rule": node.meta.get("rule", ""),
        "source": node.meta.get("source", ""),
        "stands in": file,
    }
    kind = "collective" if "forward" in exchange else "value" if node.op == "call_function" else "input"
    return Explanation(name, kind, facts)


def _exchange(node: fx.Node) -> dict[str, str]:
    """The group of ranks that an op works with and, of a conversion, what it is forward and backward."""
    arguments = (*node.args, *node.kwargs.values())
    over = {"over": ", ".join(str(each) for each in arguments if isinstance(each, GroupName))}
    word = op_name(node).split(".")[1] if over["over"] else ""
    if word not in BACKWARD and word not in ARGUED:
        return over
    backward = str(node.args[-1]) if word in ARGUED else BACKWARD[word]
    return {
        **over,
        "forward": FORWARD.get(word, word),
        "backward": backward if node.meta.get("grad") else "nothing",
    }


def _words(value: Any) -> str:
    if isinstance(value, tuple) and value and all(isinstance(dim, str) for dim in value):
        return f"({', '.join(value)})"
    if isinstance(value, tuple):
        return ", ".join(map(_words, value))
    return str(value) if not isinstance(value, list) else _listed(value)


def _listed(values: list[Any]) -> str:
    if all(isinstance(value, int) for value in values):
        return str(values)
    return ", ".join(map(str, values))
