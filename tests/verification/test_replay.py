"""Partitions that draw random numbers are held against the whole model with the very numbers of the ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from verification_models import BATCH, LENGTH, VOCAB, bert, gpt2, llama, nanogpt, t5

import fxpar
from fxpar.errors import CaptureError, ModelError
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.verification.processes import verify_all
from fxpar.verification.replay import replay
from fxpar.verification.subject import Subject, subject

WIDTH = 32
MODELS = {
    "gpt2": lambda: gpt2(0.1),
    "gpt2 written out": lambda: gpt2(0.1, attn_implementation="eager"),
    "bert": lambda: bert(0.1),
    "t5": lambda: t5(0.1),
    "nanogpt": lambda: nanogpt(0.1),
}
PLANS = {
    "tp2": fxpar.Plan(tp=2),
    "tp2 whole sequence": fxpar.Plan(tp=2, sequence_parallel=False),
    "cp2": fxpar.Plan(cp=2),
    "pp2": fxpar.Plan(pp=2),
    "dp2 tp2": fxpar.Plan(dp=2, tp=2),
    "dp2 tp2 mb2": fxpar.Plan(dp=2, tp=2, microbatches=2),
    "pp2 tp2 mb4": fxpar.Plan(pp=2, tp=2, microbatches=4),
}


@pytest.mark.parametrize(
    ("name", "plan"),
    [("gpt2", plan) for plan in PLANS]
    + [(name, plan) for name in MODELS if name != "gpt2" for plan in ("cp2", "pp2 tp2 mb4")],
)
def test_dropout_is_replayed(name: str, plan: str) -> None:
    model, inputs = MODELS[name]()
    report = fxpar.verify(model.double().train(), kwargs=inputs, plan=PLANS[plan], simulate=True)
    assert report.ok, report.text()
    assert max(report.loss_error, report.gradient_error, report.norm_error, report.output_error) < 1e-11
    assert report.draws >= 5
    assert f"random numbers: {report.draws} ops, drawn by placement from seed 0" in report.text()


@pytest.mark.gloo
def test_dropout_is_replayed_for_processes() -> None:
    plan = fxpar.Plan(pp=2, tp=2, microbatches=2, seed=5)
    made = {name: MODELS[name]() for name in ("gpt2", "t5")}
    subjects = [subject(model.double().train(), (), inputs, plan) for model, inputs in made.values()]
    for name, report in zip(made, verify_all(subjects, device="cpu")):
        assert report.ok, f"{name}\n{report.text()}"
        assert report.gradient_error < 1e-11
        assert (report.seed, report.simulated) == (5, False)


class Noise(nn.Module):
    """A residual stream to which something random is done, before and after attention."""

    def __init__(self, noise: Callable[[Tensor, nn.Module], Tensor], parts: int = 4) -> None:
        super().__init__()
        self.noise, self.parts = noise, parts
        self.tokens, self.norm = nn.Embedding(VOCAB, WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.LSTM(WIDTH, WIDTH, 2, dropout=0.5, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.noise(self.tokens(ids), self)
        heads = (t.view(*ids.shape, 4, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(*heads, dropout_p=0.2, is_causal=True)
        return self.noise(x + self.out(y.transpose(1, 2).flatten(2)), self).square().mean()


NOISES: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "randn": lambda x, _: x + torch.randn(BATCH, LENGTH, WIDTH, dtype=x.dtype),
    "noise of positions": lambda x, _: x + torch.rand(LENGTH, 1, dtype=x.dtype),
    "drop path": lambda x, _: x * (0.7 + torch.rand(BATCH, 1, 1, dtype=x.dtype)).floor() / 0.7,
    "drop path in place": lambda x, _: x * x.new_empty(BATCH, 1, 1).bernoulli_(0.5),
    "dropped weights": lambda x, m: x + F.linear(x, F.dropout(m.out.weight, 0.3), m.out.bias),
    "rand_like": lambda x, _: x * torch.rand_like(x.transpose(1, 2)).transpose(1, 2),
    "bernoulli": lambda x, _: x * torch.bernoulli(x.sigmoid()),
    "normal in place": lambda x, _: x + x.new_empty(x.shape).normal_(),
    "whole channels": lambda x, _: F.dropout1d(x, 0.5),
    "alpha dropout": lambda x, _: F.alpha_dropout(x, 0.5, training=True),
    "a permutation": lambda x, _: x[:, torch.randperm(LENGTH)],
    "gumbel": lambda x, _: x + F.gumbel_softmax(x, dim=-1),
    "a recurrent network": lambda x, m: x + m.inner(x)[0],
}


def noisy(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Noise(NOISES[name]).double(), torch.randint(VOCAB, (BATCH, LENGTH))


#: Ops without a rule: they need the whole batch.
WHOLE = (
    "whole channels",
    "alpha dropout",
    "gumbel",
    "a recurrent network",
    "drop path in place",
    "normal in place",
)
CASES = [
    (name, plan)
    for name in NOISES
    for plan in ("dp2 tp2", "pp2 tp2 mb4")
    if name not in WHOLE or "mb" not in plan
]


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_every_random_op_is_replayed(name: str, plan: str) -> None:
    model, ids = noisy(name)
    report = fxpar.verify(model, (ids,), plan=PLANS[plan], simulate=True)
    assert report.ok, report.text()
    assert report.draws >= 2


def test_queries_of_one_key_head_draw_for_themselves() -> None:
    """Two heads of keys and values over four ranks: the mesh dim falls into pieces."""
    model, inputs = llama(heads=2, dropout=0.2)
    report = fxpar.verify(model.double().train(), kwargs=inputs, plan=fxpar.Plan(tp=4), simulate=True)
    assert report.ok, report.text()
    assert (dict(report.mesh)["tp2"], report.draws) == (2, 2)


def test_masks_are_those_of_the_placement() -> None:
    """Other masks for each slice, layer, microbatch and step; equal ones where a value is the same; p of them zero."""
    model, inputs = gpt2(0.25)
    found = subject(model.double().train(), (), inputs, fxpar.Plan(dp=2, tp=2, microbatches=2))
    again = subject(model, (), inputs, fxpar.Plan(dp=2, tp=2, microbatches=2, seed=1))
    masks = _masks(found, inputs)
    assert len(masks) == 5
    flat = [
        tuple(half.flatten().tolist())
        for mask in masks
        for quarter in mask.chunk(4)
        for half in _halves(quarter)
    ]
    assert len(set(flat)) == len(flat) == 5 * 4 * 2
    dropped = torch.cat([mask.flatten() for mask in masks]).double().mean()
    assert abs(float(dropped) - 0.25) < 0.02
    assert not any(torch.equal(a, b) for a, b in zip(masks, _masks(again, inputs)))
    assert all(torch.equal(a, b) for a, b in zip(masks, _masks(found, inputs)))


def _halves(mask: Tensor) -> tuple[Tensor, ...]:
    """What the two ranks of tp have: halves of the sequence."""
    return mask.chunk(2, 1)


def _masks(found: Subject, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Where each `dropout` of the whole model has zeros that were none before."""
    drops: list[Tensor] = []
    run = torch.ops.aten.dropout.default
    nodes = [draw.node for draw in found.partition.sharded.draws if draw.node.target is run]
    program = found.partition.program
    output = program.graph.output_node()
    before = output.args
    output.args = (tuple(nodes),)
    try:
        drops = replay(found.partition, inputs, {})
    finally:
        output.args = before
    return [drop == 0 for drop in drops]


def test_steps_draw_other_numbers() -> None:
    model, inputs = gpt2(0.1)
    found = subject(model.double().train(), (), inputs, fxpar.Plan(tp=2))

    def run(_: int, groups: Groups) -> list[float]:
        rank = found.rank(groups)
        state = rank.randomness.state_dict()
        losses = [float(rank.step(inputs)) for _ in range(2)]
        rank.randomness.load_state_dict(state)
        return [*losses, float(rank.step(inputs))]

    first, second = simulate(found.partition.mesh, run)
    assert first == second
    assert first[0] == first[2] != first[1]


class Logits(nn.Module):
    """Drops logits, of which one rank has one more than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCAB + 1, WIDTH), nn.Linear(WIDTH, VOCAB + 1)

    def forward(self, ids: Tensor) -> Tensor:
        logits = F.dropout(self.head(self.tokens(ids)), 0.2)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def test_parts_of_unequal_sizes_are_replayed() -> None:
    ids = torch.randint(VOCAB, (BATCH, LENGTH))
    report = fxpar.verify(Logits().double(), (ids,), plan=fxpar.Plan(tp=2), simulate=True)
    assert report.ok, report.text()
    assert report.rows[0].local_shape[0] * 2 == VOCAB + 2


class Hidden(torch.autograd.Function):
    """Draws random numbers that nothing shows."""

    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape, dtype=x.dtype)

    @staticmethod
    def backward(_ctx: object, grad: Tensor) -> Tensor:
        return grad


def test_what_cannot_be_drawn_again_is_refused() -> None:
    torch.manual_seed(0)
    model = Noise(lambda x, _: Hidden.apply(x)).double()
    ids = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    with pytest.raises(CaptureError, match=r"autograd\.Function `Hidden` draws random numbers"):
        fxpar.verify(model, (ids,), plan=fxpar.Plan(tp=2), simulate=True)


def test_a_graph_that_is_not_the_model_is_found() -> None:
    model, ids = noisy("randn")
    found = subject(model, (ids,), {}, fxpar.Plan(tp=2))
    node = next(n for n in found.partition.program.graph.nodes if "randn" in str(n.target))
    node.target = torch.ops.aten.rand.default
    with pytest.raises(
        ModelError, match="graph of `Noise` does not draw the random numbers of the model"
    ) as caught:
        found.reference()
    assert "output `0` differs when both start from the same seed" in str(caught.value)
