"""What cannot be dynamic, and what is said of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxpar.dynamic.capture import captured
from fxpar.errors import CaptureError, FxparError, ModelError, PlanError, ShardError
from fxpar.passes import split
from fxpar.plan import Plan

sys.path.insert(0, str(Path(__file__).parent))
from dynamic_models import Attention


class Steps(nn.Module):
    """A loop over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        state = x[:, 0]
        for position in range(ids.shape[1]):
            state = state + x[:, position]
        return nn.functional.cross_entropy(self.head(state), ids[:, 0])


class Halves(Attention):
    """Half of the length, rounded down."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.tokens(ids[:, : ids.shape[1] // 2]).sum()


class Learned(Attention):
    """A table with a row for each of 24 positions."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.positions = nn.Embedding(24, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.positions(torch.arange(ids.shape[1])).sum()


def ids(batch: int = 4, length: int = 16) -> dict[str, Tensor]:
    return {"ids": torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(0))}


def error_of(model: nn.Module, plan: Plan, **batch: Any) -> FxparError:
    with pytest.raises(FxparError) as error:
        split(captured(model, (), batch or ids(), plan), plan)
    return error.value


def test_a_size_that_is_needed_as_a_number() -> None:
    plan = Plan(splits={"batch": "dp"}, dynamic=["batch"])
    assert [axis.name for axis in captured(Steps(), (), ids(), plan).dynamic] == ["batch"]
    model = Attention(lambda found: torch.zeros(found.shape[1], int(found.shape[1])))
    error = error_of(model, Plan(dynamic=["batch", "sequence"]))
    assert isinstance(error, CaptureError)
    assert str(error).startswith("`sequence` of `Attention` cannot be dynamic")
    assert "test_capture.py" in str(error) or "dynamic_models.py" in str(error)
    assert str(error).endswith("leave `sequence` out of `dynamic`")


class Square(nn.Module):
    """As many samples in the example as features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.layer(x), y)


def test_a_size_that_is_fixed_elsewhere() -> None:
    program = captured(
        Square(), (), {"x": torch.zeros(8, 8), "y": torch.zeros(8, 8)}, Plan(dynamic=["batch"])
    )
    assert [axis.name for axis in program.dynamic] == ["batch"]


def test_a_size_that_is_no_sum_of_products() -> None:
    error = error_of(Halves(lambda _: None), Plan(dynamic=["sequence"]))
    assert isinstance(error, CaptureError)
    assert "a size there is more than sums and products of others" in str(error)


def test_axes_that_the_inputs_have_not() -> None:
    error = error_of(Attention(lambda _: None), Plan(dynamic=["sequences", "heads"]))
    assert str(error) == (
        "Plan(dynamic=...): no dim of an input is on an axis `sequences`\n"
        "  did you mean `sequence`?\n"
        "  allowed: batch, sequence\n"
        "Plan(dynamic=...): no dim of an input is on an axis `heads`\n"
        "  allowed: batch, sequence"
    )


def test_an_example_of_size_one() -> None:
    error = error_of(Attention(lambda _: None), Plan(dynamic=["batch"]), **ids(1))
    assert isinstance(error, PlanError)
    assert str(error).startswith("Plan(dynamic=...): no dim of an input is on an axis `batch`")


def test_axes_are_texts_each_once() -> None:
    with pytest.raises(PlanError, match="axis `batch` stands twice in `dynamic`"):
        Plan(dynamic=["batch", "batch"])
    with pytest.raises(PlanError):
        Plan(dynamic=[3])  # type: ignore[list-item]


def test_a_table_limits_the_length() -> None:
    plan = Plan(dynamic=["sequence"])
    made = split(captured(Learned(), (), ids(), plan), plan)
    (axis,) = made.manifest.dynamic
    assert (axis.size, axis.most) == (16, 24)
    assert axis.reason.startswith("`positions.weight` has 24 rows (test_capture.py:")


def test_dims_that_may_be_of_several_axes() -> None:
    class Model(nn.Module):
        def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
            return ids * 2.0 + scale.sum()

    plan = Plan(dynamic=["batch"])
    found = captured(Model(), (), {"ids": torch.ones(4, 3), "scale": torch.ones(3, 4)}, plan)
    assert found.dynamic[0].places[0] == ("ids", 0)


def causal(found: Tensor) -> Tensor:
    positions = torch.arange(found.shape[1])
    return positions[None, :] <= positions[:, None]


def window(found: Tensor) -> Tensor:
    """Causal in an example of 16, and not from 41 on."""
    positions = torch.arange(found.shape[1])
    return causal(found) & (positions[:, None] - positions[None, :] < 40)


def from_a_table(found: Tensor) -> Tensor:
    return torch.ones(64, 64).tril().bool()[: found.shape[1], : found.shape[1]]


@pytest.mark.parametrize(
    ("mask", "kind"), [(causal, "causal"), (window, None), (from_a_table, "causal"), (lambda _: None, "full")]
)
def test_masks_are_what_they_are_at_all_sizes(mask: Any, kind: str | None) -> None:
    program = captured(Attention(mask), (), ids(), Plan(dynamic=["sequence"]))
    marks = {
        node.meta.get("mask")
        for each in (program, *program.others)
        for node in each.graph.nodes
        if "scaled_dot_product" in str(node.target)
    }
    assert marks == {kind}


def test_a_partition_that_is_another_one_elsewhere() -> None:
    """A constant made of a size has another value at each size."""

    class Counting(Attention):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * float(ids.shape[1])

    error = error_of(Counting(lambda _: None), Plan(dynamic=["sequence"]))
    assert isinstance(error, ShardError | CaptureError | ModelError)


def test_opaque_modules_have_fixed_sizes() -> None:
    error = error_of(Attention(lambda _: None), Plan(dynamic=["batch"], opaque=["out"]))
    assert str(error) == (
        "Plan(dynamic=...): a model with opaque modules cannot have dynamic axes\n"
        "  what an opaque module makes of other sizes is not known\n"
        "  leave one of the two out"
    )
