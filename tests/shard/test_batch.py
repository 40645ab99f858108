"""Microbatches: what is made of the whole batch first, and that the pieces together are the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from shard_case import COMPOSITES, NAMES, OPS, Case, difference, interpret, mesh_of, part, splits
from shard_models import BATCH, LENGTH, VOCAB, WIDTH, case, labels, tokens
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxpar
from fxpar.capture.precision import Float64
from fxpar.errors import ShardError
from fxpar.runtime import cutting
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.shard.batch import Batch, Prepared, cut_batch
from fxpar.shard.placement import PARTIAL, Shard, cuts_of, layout
from fxpar.shard.shard import shard
from fxpar.shard.sharded import Sharded

EXACT = 1e-9


@dataclass
class Timed:
    """A model that is cut into microbatches, on a mesh."""

    case: Case
    count: int
    mesh: str = ""

    def __post_init__(self) -> None:
        with Float64():
            mesh, table = mesh_of(self.mesh), splits("default")
            self.sharded: Sharded = shard(
                self.case.program, mesh, table, OPS, NAMES, composites=COMPOSITES, timed={"mb": self.count}
            )
        self.batch: Batch = cut_batch(self.sharded.graph, "mb")

    def prepared(self, tensors: Mapping[str, Tensor], groups: Groups) -> list[dict[str, Tensor]]:
        """What each microbatch is given, by name."""
        flat = self.case.program.flat_inputs(self.case.inputs)
        values = interpret(self.batch.prepare, tensors, flat, groups, 0)
        made = values[self.batch.prepare.output_node()]
        return [
            {p.name: self.piece(p, v, n) for p, v in zip(self.batch.prepared, made)}
            for n in range(self.count)
        ]

    def piece(self, prepared: Prepared, value: Tensor, number: int) -> Tensor:
        """One microbatch's part of a prepared value."""
        if prepared.dim is None:
            return value
        return cutting.part(value, prepared.dim, prepared.layout, number, self.count)

    def step(self) -> float:
        """All microbatches on every rank; the largest error of outputs and of summed gradients."""
        return max(simulate(self.sharded.mesh, self.rank))

    def rank(self, number: int, groups: Groups) -> float:
        """One rank's error."""
        at = self.sharded.mesh.coordinate(number)
        laid = self.sharded.tensors
        tensors = {n: part(laid[n], self.case.program.tensors[n].detach(), at) for n in laid}
        learned = {
            n: t.requires_grad_() for n, t in tensors.items() if self.case.program.placeholder(n).meta["grad"]
        }
        outputs = []
        for microbatch, given in enumerate(self.prepared(tensors, groups)):
            values = interpret(self.batch.rest, tensors, given, groups, 0)
            outputs.append(values[self.batch.rest.output_node()])
            self.backward(outputs[-1], {**at, "mb": microbatch})
        worst = self.outputs(outputs, at)
        for name, tensor in learned.items():
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            for mesh_dim in laid[name].reduce:
                gradient = groups.group(mesh_dim).all_reduce(gradient)
            worst.append(difference(gradient, part(laid[name], self.case.whole[1][name], at)))
        return max(worst)

    def backward(self, outputs: list[Any], at: Mapping[str, int]) -> None:
        """Each microbatch has its part of the objective."""
        roots = [(o, i) for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.requires_grad]
        weights = []
        for out, index in roots:
            laid = self.sharded.outputs[index]
            assert laid is not None
            weights.append(part(laid, self.case.weight(index, torch.empty(laid.shape, dtype=out.dtype)), at))
        torch.autograd.backward([out for out, _ in roots], weights)

    def outputs(self, made: list[list[Any]], at: Mapping[str, int]) -> list[float]:
        """The error of each output: the pieces are joined, or added."""
        return [
            difference(self.joined(i, [each[i] for each in made]), self.wanted(i, at))
            for i in range(len(made[0]))
        ]

    def joined(self, index: int, pieces: list[Any]) -> Any:
        """One output of all microbatches."""
        laid = self.sharded.outputs[index]
        state = laid.held.get("mb") if laid else None
        if laid and isinstance(state, Shard):
            cuts = cuts_of(laid.held, state.dim, laid.sizes)
            spread = layout(laid.dims[state.dim], state.factor, cuts)
            return cutting.joined(pieces, state.dim, [spread] * len(pieces))
        return sum(pieces) if self.is_sum(index) else pieces[0]

    def is_sum(self, index: int) -> bool:
        """Whether the microbatches' values of an output are added."""
        node = self.sharded.graph.output_node().args[0][index]  # type: ignore[index]
        return isinstance(node, fx.Node) and node.meta["held"].get("mb") is PARTIAL

    def wanted(self, index: int, at: Mapping[str, int]) -> Any:
        """The rank's part of one output of the whole model, of all microbatches together."""
        laid, whole = self.sharded.outputs[index], self.case.whole[0][index]
        if laid is None or not isinstance(whole, Tensor):
            return whole
        parts = [part(laid, whole, {**at, "mb": number}) for number in range(self.count)]
        return self.joined(index, parts) if isinstance(laid.held.get("mb"), Shard) else parts[0]


@cache
def timed(name: str, count: int, mesh: str = "") -> Timed:
    """A model of the table in microbatches."""
    return Timed(case(name), count, mesh)


def made(model: nn.Module, **inputs: Tensor) -> Case:
    torch.manual_seed(0)
    return Case(model.double(), inputs)


def ops(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "count", "mesh"),
    [
        *((name, count, "") for name in ("nanogpt", "bert") for count in (2, 4)),
        *((name, 2, "") for name in ("llama", "gpt2", "t5", "encoder", "perceptron")),
        *((name, 2, mesh) for name in ("nanogpt", "bert") for mesh in ("tp2", "dp2", "cp2 tp2")),
        ("perceptron", 4, "dp2 tp2"),
    ],
)
def test_the_microbatches_make_up_the_whole(name: str, count: int, mesh: str) -> None:
    """The targets that count, and padding, are spread unevenly over the batch."""
    assert timed(name, count, mesh).step() < EXACT


@pytest.mark.parametrize("count", [2, 4])
def test_what_is_prepared(count: int) -> None:
    size = BATCH // count
    found = timed("nanogpt", count).batch
    cut = [(each.name, each.dim, each.layout) for each in found.prepared if each.dim is not None]
    assert cut == [("idx", 0, (1, size)), ("targets", 0, (1, size))]
    (whole,) = [each for each in found.prepared if each.dim is None]
    assert len(found.prepare.output_node().args[0]) == len(found.prepared)
    given = [n for n in found.rest.find_nodes(op="placeholder") if n.meta["kind"] == "prepared"]
    assert [n.name for n in given] == [*("idx", "targets"), whole.name]
    assert [tuple(n.meta["val"].shape) for n in given] == [(size, LENGTH), (size, LENGTH), ()]


@pytest.mark.parametrize("name", ["nanogpt", "bert"])
def test_targets_are_counted_once_in_the_whole_batch(name: str) -> None:
    found = timed(name, 2).batch
    assert [op for op in ops(found.prepare) if "fxpar" in op] == ["fxpar.count_targets.default"]
    assert [op for op in ops(found.rest) if "fxpar" in op] == ["fxpar.cross_entropy.default"]
    count = next(n for n in found.prepare.nodes if "count_targets" in str(n.target))
    assert tuple(count.args[0].meta["val"].shape) == (BATCH * LENGTH,)
    loss = next(n for n in found.rest.nodes if str(n.target) == "fxpar.cross_entropy.default")
    assert loss.args[-1].meta["kind"] == "prepared"


def test_what_depends_on_no_input_is_not_prepared() -> None:
    """Positions are made again by each microbatch."""
    found = timed("nanogpt", 2).batch
    assert "aten.arange.default" not in ops(found.prepare)
    assert ops(found.rest)[0] == "aten.arange.default"


def test_numbers_of_samples_are_cut_with_them() -> None:
    """A mask that is looked up by the number of the sample: the whole mask, and the microbatch's numbers."""
    found = timed("bert", 2).batch
    assert [(each.name, each.dim) for each in found.prepared] == [
        ("input_ids", 0),
        ("arange", 0),
        ("labels", 0),
        ("to", None),
        ("cross_entropy_loss", None),
    ]


def test_the_graph_that_is_cut_stays_as_it_is() -> None:
    sharded = timed("nanogpt", 2).sharded
    before = str(sharded.graph)
    cut_batch(sharded.graph, "mb")
    assert str(sharded.graph) == before
    assert any("fxpar.slice" in op for op in ops(sharded.graph))


def test_parameters_are_whole_in_every_microbatch() -> None:
    assert all(
        "mb" not in laid.held and "mb" not in laid.reduce
        for laid in timed("bert", 2).sharded.tensors.values()
    )


class Seen(nn.Module):
    """Uses its mask by rows, which may be cut, and by numbers of samples, which may not."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.out = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor, seen: Tensor) -> Tensor:
        x = (self.tokens(ids) * seen[..., None])[:, None]
        sample, key = torch.arange(BATCH)[:, None, None, None], torch.arange(LENGTH)
        mask = seen[sample, key].expand(BATCH, 1, LENGTH, LENGTH)
        return self.out(F.scaled_dot_product_attention(x, x, x, attn_mask=mask))


def test_a_value_that_is_needed_whole_and_in_pieces() -> None:
    seen = torch.arange(LENGTH) < torch.tensor([16, 10, 13, 4])[:, None]
    subject = made(Seen(), ids=tokens(), seen=seen)
    found = Timed(subject, 2)
    (whole,) = [each for each in found.batch.prepared if each.dim is None]
    assert whole.name == "seen"
    assert len({each.name for each in found.batch.prepared}) == len(found.batch.prepared) == 4
    assert found.step() < EXACT
    assert fxpar.verify(
        subject.model, kwargs=subject.inputs, plan=fxpar.Plan(microbatches=2), simulate=True
    ).ok


class Offset(nn.Module):
    """Adds a number of its own to each sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tokens, self.kind = nn.Embedding(VOCAB, WIDTH), kind
        offset = torch.arange(4.0, dtype=torch.float64)[:, None, None]
        if kind == "constant":
            self.kept = [offset]
        elif kind == "buffer":
            self.register_buffer("offset", offset)
        else:
            self.offset = nn.Parameter(offset, requires_grad=kind == "parameter")

    def forward(self, ids: Tensor) -> Tensor:
        offset = self.kept[0] if self.kind == "constant" else self.offset
        return (self.tokens(ids) + offset).square()


@pytest.mark.parametrize("kind", ["constant", "buffer", "frozen parameter"])
def test_what_the_model_holds_of_each_sample(kind: str) -> None:
    subject = made(Offset(kind), ids=tokens())
    assert Timed(subject, 2).step() < EXACT
    assert fxpar.verify(
        subject.model, kwargs=subject.inputs, plan=fxpar.Plan(microbatches=2), simulate=True
    ).ok


class Weighted(nn.Module):
    """The count of targets takes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.loss = nn.CrossEntropyLoss(weight=torch.rand(VOCAB))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(self.tokens(ids)).flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("mesh", ["", "tp2", "dp2"])
def test_a_buffer_is_used_before_the_batch_is_cut(mesh: str) -> None:
    found = Timed(made(Weighted(), ids=tokens(), labels=labels()), 2, mesh)
    assert [n.name for n in found.batch.prepare.find_nodes(op="placeholder")] == [
        "loss_weight",
        "ids",
        "labels",
    ]
    assert found.step() < EXACT


class Normed(nn.Module):
    """A norm over the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(12, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.norm(self.up(x))))


class Contrast(nn.Module):
    """Every sample against every other."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids).mean(1)
        return F.cross_entropy(x @ x.T, torch.arange(BATCH))


@pytest.mark.parametrize(
    ("model", "inputs", "op", "place"),
    [
        (Normed(), {"x": torch.ones(8, 12, dtype=torch.float64)}, "aten.batch_norm.default", "norm"),
        (Contrast(), {"ids": tokens()}, "aten.matmul.default", "the model"),
        (Offset("parameter"), {"ids": tokens()}, "aten.add.Tensor", "the model"),
    ],
)
def test_what_mixes_samples_is_refused(
    model: nn.Module, inputs: Mapping[str, Tensor], op: str, place: str
) -> None:
    subject = made(model.train(), **inputs)
    with pytest.raises(ShardError) as caught:
        Timed(subject, 2)
    first, where, last = str(caught.value).splitlines()
    assert first == f"microbatches mix at `{op}`: it needs the whole batch"
    assert where.startswith(f"  {place} (test_batch.py:")
    assert last == "  use one microbatch"
