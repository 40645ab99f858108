"""Pipelines in the simulator and alone: the whole model's numbers, what is sent, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxpar.errors import PlanError, RankError
from fxpar.mesh import Mesh
from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.runtime.gradients import ParameterGradient, reduce_gradients
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.pipeline import Pipeline
from fxpar.schedule import SCHEDULES

WIDTH, STAGES = 3, 3
VALUE = ValueSpec("x", (2, WIDTH), "float64", True)
COUNT = ValueSpec("count", (2,), "int64", False)
LOSS = ValueSpec("loss", (), "float64", True)


class Middle(nn.Module):
    """Passes the stream on through a weight that the first and the last stage share, and a number beside it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        generator = torch.Generator().manual_seed(0)
        tied = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        own = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(own if index == 1 else tied)

    def forward(self, *received: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, count = received if received else (inputs["x"], inputs["count"])
        y = torch.tanh(x @ self.weight)
        if self.index < STAGES - 1:
            return y, count.clone()
        return (y * inputs["scale"] * count[:, None]).sum(), y


def spec(index: int) -> StageSpec:
    return StageSpec(
        index,
        STAGES,
        received=(VALUE, COUNT) if index else (),
        sent=(VALUE, COUNT) if index < STAGES - 1 else (),
        inputs={0: ("x", "count"), STAGES - 1: ("scale",)}.get(index, ()),
        outputs=("loss", "y"),
        loss=LOSS,
        shared={} if index == 1 else {"weight": (0, 2)},
        rank=index,
    )


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(2, WIDTH, generator=generator, dtype=torch.float64),
            "scale": torch.randn(2, WIDTH, generator=generator, dtype=torch.float64),
            "count": torch.tensor([number, 2]),
        }
        for number in range(count)
    ]


def whole(count: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and the gradients of both weights, without any pipeline."""
    tied, own = Middle(0).weight, Middle(1).weight
    loss = torch.zeros((), dtype=torch.float64)
    for batch in batches(count):
        y = torch.tanh(torch.tanh(torch.tanh(batch["x"] @ tied) @ own) @ tied)
        loss = loss + (y * batch["scale"] * batch["count"][:, None]).sum()
    loss.backward()
    return loss.detach(), [tied.grad, own.grad, tied.grad]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero-bubble"])
def test_simulated(schedule: str, count: int) -> None:
    def rank(index: int, groups: Groups):
        module = Middle(index)
        pipeline = Pipeline([module], [spec(index)], groups, schedule=schedule)
        loss, outputs = pipeline.step(batches(count), everywhere=True)
        tie = "pp[0,2]" if index != 1 else None
        reduce_gradients([ParameterGradient("weight", module.weight, tie=tie)], groups)
        return loss, outputs, module.weight.grad

    results = simulate(Mesh({"pp": STAGES}), rank)
    loss, gradients = whole(count)
    for index, (found, outputs, gradient) in enumerate(results):
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(gradient, gradients[index])
        assert (outputs is None) == (index < STAGES - 1)
    sent = 2 * WIDTH * 8
    assert [counter.bytes("send") for counter in results.counters] == [
        count * (sent + 16),
        count * (sent + 16 + sent),
        count * sent,
    ]


def test_evaluation_keeps_no_gradient() -> None:
    def rank(index: int, groups: Groups):
        module = Middle(index)
        loss, outputs = Pipeline([module], [spec(index)], groups).evaluate(batches(4))
        return loss, outputs, module.weight.grad

    *_, (loss, outputs, _) = results = simulate(Mesh({"pp": STAGES}), rank)
    torch.testing.assert_close(loss, whole(4)[0])
    assert len(outputs) == 4
    assert not any(output.requires_grad for output in outputs[0])
    assert [gradient for _, _, gradient in results] == [None] * STAGES
    assert [result[0] is None for result in results] == [True, True, False]


class Single(nn.Module):
    """A whole model as one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (self.weight * x).sum(), None


def test_a_single_stage_accumulates() -> None:
    module = Single()
    outputs = ("loss", "nothing")
    loss = ValueSpec("loss", (), "float32", True)
    pipeline = Pipeline([module], [StageSpec(0, 1, inputs=("x",), outputs=outputs, loss=loss)])
    loss, found = pipeline.step([{"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([3.0, 4.0])}])
    assert (loss.item(), module.weight.grad.tolist()) == (10, [4, 6])
    assert [output for _, output in found] == [None, None]
    assert module.weight.grad.tolist() == [4, 6]


def test_what_is_refused() -> None:
    with pytest.raises(PlanError) as error:
        Pipeline([Single()], [StageSpec(0, 1)], schedule="2f2b")
    assert str(error.value) == "there is no schedule `2f2b`\n  there are " + ", ".join(SCHEDULES)
    pipeline = Pipeline([Single()], [StageSpec(0, 1, inputs=("x",), outputs=("a", "b"))])
    with pytest.raises(RankError) as missing:
        pipeline.step([{"x": torch.ones(2)}])
    assert str(missing.value) == "there is no loss to step on\n  outputs: a, b"
    with pytest.raises(PlanError) as empty:
        pipeline.evaluate([])
    assert str(empty.value) == "a pipeline needs one microbatch at least"


def test_a_stage_on_the_wrong_rank() -> None:
    def rank(_: int, groups: Groups) -> Pipeline:
        return Pipeline([Middle(0)], [spec(0)], groups)

    with pytest.raises(RankError, match="stage 0 of 3 cannot run on rank 1 of 3 along pp\n  that one runs 1"):
        simulate(Mesh({"pp": STAGES}), rank)
