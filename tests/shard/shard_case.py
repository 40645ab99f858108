"""A model that is split, run on every rank in the simulator, and held against the whole model.

The objective is a fixed random weight for every element of every differentiable output, so that all that a model
gives out is compared, not only its loss. Outputs are compared too, each rank's part with the same part of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxpar import yamlfile
from fxpar.axes import composite, naming, oprule
from fxpar.capture.capture import capture
from fxpar.capture.precision import Float64
from fxpar.capture.program import Program
from fxpar.errors import PlanError
from fxpar.mesh import MESH_DIMS, GroupIndex, GroupName, Mesh
from fxpar.runtime.counter import Counter
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.shard import table
from fxpar.shard.shard import shard
from fxpar.shard.sharded import Laid, Sharded

RULES = Path(__file__).parents[2] / "rules"
OPS, NAMES, COMPOSITES = oprule.load([RULES]), naming.load([RULES]), composite.load([RULES])
AXES = {rule.axis for rule in NAMES} | {"experts"}
SEED = 7


def rows(text: str, file: str = "plan.yaml") -> dict[str, table.Row]:
    """A table of splits from its text."""
    return table.read(yamlfile.parse(text, file, PlanError), AXES, (*MESH_DIMS, "mb"))


def splits(name: str) -> dict[str, table.Row]:
    """A table of splits that is shipped: `default` or `whole_sequence`."""
    file = f"splits/{name}.yaml"
    return rows((RULES / file).read_text(), f"rules/{file}")


def mesh_of(text: str) -> Mesh:
    """`dp2 tp4` as a mesh."""
    return Mesh(
        {word.rstrip("0123456789"): int(word.lstrip("abcdefghijklmnopqrstuvwxyz")) for word in text.split()}
    )


@dataclass
class Rank:
    """What one rank has after forward and backward."""

    outputs: list[Any]
    gradients: dict[str, Tensor]
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    """Every value of the graph by the name of its node."""


@dataclass
class Run:
    """A sharded graph after it was run on every rank."""

    sharded: Sharded
    ranks: list[Rank]
    counters: tuple[Counter, ...]
    worst: dict[str, float]
    """The largest error over the ranks of each output, gradient and updated buffer."""

    @property
    def error(self) -> float:
        """The largest error of all."""
        return max(self.worst.values())

    def __str__(self) -> str:
        wrong = sorted(self.worst.items(), key=lambda item: -item[1])[:4]
        return ", ".join(f"{name} {error:.1e}" for name, error in wrong)


class Case:
    """A model and its inputs, captured once; `shard` and `run` may be called for many meshes."""

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], seed: int = SEED, *, wide: bool = True
    ) -> None:
        self.model, self.inputs, self.seed = model, dict(inputs), seed
        self.precision = Float64 if wide else nullcontext
        self.before = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
        with self.precision():
            self.program: Program = capture(model, (), self.inputs)
        self._restore()

    def shard(self, mesh: str | Mesh, given: Mapping[str, table.Row] | str = "default") -> Sharded:
        """The graph split over a mesh."""
        rows_ = splits(given) if isinstance(given, str) else given
        with self.precision():
            grid = mesh_of(mesh) if isinstance(mesh, str) else mesh
            return shard(self.program, grid, rows_, OPS, NAMES, composites=COMPOSITES)

    def check(self, mesh: str | Mesh, given: Mapping[str, table.Row] | str = "default") -> Run:
        """Split, run on every rank and compare with the whole model; returns the run with its errors."""
        return self.run(self.shard(mesh, given))

    @cached_property
    def whole(self) -> tuple[list[Any], dict[str, Tensor], dict[str, Tensor]]:
        """Outputs, gradients by name and buffers afterwards of the whole model."""
        self._restore()
        with self.precision():
            outputs = pytree.tree_leaves(_values(self.model(**self.inputs)))
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        roots = [(out, self.weight(i, out)) for i, out in enumerate(outputs) if _differentiable(out)]
        grads = torch.autograd.grad(
            [out for out, _ in roots],
            list(parameters.values()),
            [weight for _, weight in roots],
            allow_unused=True,
        )
        gradients = {
            name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), grads)
        }
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        self._restore()
        return [o.detach() if isinstance(o, Tensor) else o for o in outputs], gradients, buffers

    def weight(self, position: int, whole: Tensor) -> Tensor:
        """The weights of one output in the objective."""
        draw = torch.Generator().manual_seed(position)
        return torch.randn(whole.shape, generator=draw, dtype=torch.float64).to(whole.dtype)

    def run(self, sharded: Sharded) -> Run:
        """Run a sharded graph on every rank and compare."""
        flat = self.program.flat_inputs(self.inputs)
        found = simulate(sharded.mesh, lambda rank, groups: self._rank(sharded, rank, groups, flat))
        return Run(sharded, list(found), found.counters, self._errors(sharded, list(found)))

    def _rank(self, sharded: Sharded, rank: int, groups: Groups, flat: Mapping[str, Tensor]) -> Rank:
        coordinate = sharded.mesh.coordinate(rank)
        tensors = {
            name: part(laid, self.program.tensors[name].detach(), coordinate)
            for name, laid in sharded.tensors.items()
        }
        parameters = [name for name in tensors if self.program.placeholder(name).meta["grad"]]
        for name in parameters:
            tensors[name].requires_grad_()
        values = interpret(sharded.graph, tensors, flat, groups, self.seed)
        outputs = list(values[sharded.graph.output_node()])
        roots = []
        for position, (out, laid) in enumerate(zip(outputs, sharded.outputs)):
            if _differentiable(out):
                assert laid is not None
                whole = torch.empty(laid.shape, dtype=laid.dtype, device="meta")
                roots.append((out, part(laid, self.weight(position, whole), coordinate)))
        torch.autograd.backward([out for out, _ in roots], [weight for _, weight in roots])
        gradients = {}
        for name in parameters:
            gradient = tensors[name].grad
            total = torch.zeros_like(tensors[name]) if gradient is None else gradient
            with groups.counter.phase("gradients"):
                for mesh_dim in sharded.tensors[name].reduce:
                    total = groups.group(mesh_dim).all_reduce(total)
                for overlap in sharded.tensors[name].overlaps:
                    for start, length in overlap.spans:
                        own = total.narrow(overlap.dim, start, length)
                        own.copy_(groups.group(overlap.mesh_dim).all_reduce(own.contiguous()))
            gradients[name] = total
        named = {node.name: value for node, value in values.items()}
        return Rank(outputs, gradients, tensors, named)

    def _errors(self, sharded: Sharded, ranks: list[Rank]) -> dict[str, float]:
        outputs, gradients, buffers = self.whole
        worst: dict[str, float] = {}

        def compare(
            name: str, laid: Laid | None, found: Any, wanted: Any, coordinate: Mapping[str, int]
        ) -> None:
            if laid is not None:
                wanted = part(laid, wanted, coordinate)
            worst[name] = max(worst.get(name, 0.0), difference(found, wanted))

        for number, rank in enumerate(ranks):
            at = sharded.mesh.coordinate(number)
            assert len(rank.outputs) == len(outputs)
            for i, (out, wanted) in enumerate(zip(rank.outputs, outputs)):
                laid = sharded.outputs[i]
                compare(f"output {self.program.output_names[i]}", laid, real(laid, out, at), wanted, at)
            for name, gradient in rank.gradients.items():
                compare(name, sharded.tensors[name], gradient, gradients[name], at)
            for name, buffer in buffers.items():
                name = self.program.ties.get(name, name)
                if name in sharded.tensors:
                    compare(name, sharded.tensors[name], rank.tensors[name], buffer, at)
        return worst

    def _restore(self) -> None:
        with torch.no_grad():
            for name, tensor in _tensors(self.model):
                tensor.copy_(self.before[name])


def interpret(
    graph: fx.Graph, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor], groups: Groups, seed: int
) -> dict[fx.Node, Any]:
    """Run a sharded graph on one rank; the value of every node."""

    def local(argument: Any) -> Any:
        if isinstance(argument, GroupName):
            return groups[str(argument)]
        return groups.index(str(argument)) if isinstance(argument, GroupIndex) else argument

    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            kind, name = node.meta["kind"], node.meta["name"]
            values[node] = (
                inputs[node.name].clone()
                if kind == "input"
                else inputs.get(node.name, seed)
                if kind == "prepared"
                else tensors[name]
            )
            continue
        args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), local)
        args, kwargs = fx.node.map_arg((args, kwargs), values.__getitem__)
        values[node] = args[0] if node.op == "output" else node.target(*args, **kwargs)
    return values


def part(laid: Laid, whole: Tensor, coordinate: Mapping[str, int]) -> Tensor:
    """The part of a whole tensor that the rank at a coordinate holds, with zeros in its padding."""
    own = whole.new_zeros(laid.local_shape)
    for box in laid.boxes(coordinate):
        mine = tuple(slice(o, o + s) for o, s in zip(box.local, box.sizes))
        own[mine] = whole[tuple(slice(o, o + s) for o, s in zip(box.offset, box.sizes))]
    return own


def real(laid: Laid | None, own: Any, coordinate: Mapping[str, int]) -> Any:
    """An output of a rank with zeros in its padding, which may hold anything."""
    if laid is None or tuple(own.shape) != laid.local_shape:
        return own
    kept = torch.zeros_like(own)
    for box in laid.boxes(coordinate):
        mine = tuple(slice(o, o + s) for o, s in zip(box.local, box.sizes))
        kept[mine] = own[mine]
    return kept


def difference(found: Any, wanted: Any) -> float:
    """The largest difference, relative to the largest value if that is beyond 1.

    Infinite where shape or dtype differ, or only one of the two is not finite.
    """
    if not isinstance(wanted, Tensor):
        return 0.0 if found == wanted else float("inf")
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    if not torch.equal(found.isfinite(), wanted.isfinite()):
        return float("inf")
    gap = (found.detach() - wanted).nan_to_num(0.0, 0.0, 0.0).abs()
    scale = wanted.nan_to_num(0.0, 0.0, 0.0).abs()
    return gap.max().item() / max(1.0, scale.max().item()) if gap.numel() else 0.0


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _values(outputs: Any) -> Any:
    return dict(outputs) if isinstance(outputs, Mapping) else outputs
