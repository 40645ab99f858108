"""Sizes for which a model goes another way, sizes in arithmetic, and sizes that it returns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxpar.errors import CaptureError, FxparError, PlanError
from fxpar.passes import Partition
from fxpar.plan import Plan
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.sizes import bind
from fxpar.verification.subject import other_sizes

sys.path.insert(0, str(Path(__file__).parent))
from dynamic_models import Attention, partitioned, worst_error

PLAN = Plan(tp=2, dynamic=["batch", "sequence"])


class Changed(nn.Module):
    """Attention to embeddings that a function changes, which knows their sizes; `result` makes the outputs."""

    def __init__(
        self,
        change: Callable[[Tensor, Tensor], Tensor] = lambda x, _: x,
        result: Callable[[Tensor, Tensor], Any] = lambda loss, _: loss,
    ) -> None:
        super().__init__()
        self.change, self.result = change, result
        self.tokens, self.qkv, self.head = nn.Embedding(64, 16), nn.Linear(16, 48), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Any:
        x = self.change(self.tokens(ids), ids)
        query, key, value = self.qkv(x).view(*ids.shape, 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        x = self.head(x.reshape(*ids.shape, 16))
        return self.result(nn.functional.cross_entropy(x.flatten(0, 1), ids.flatten()), ids)


def batch(size: int = 4, length: int = 16) -> dict[str, Tensor]:
    return {"ids": torch.randint(64, (size, length), generator=torch.Generator().manual_seed(length))}


def made_of(model: nn.Module, plan: Plan = PLAN) -> Partition:
    torch.manual_seed(0)
    return partitioned(model.double(), batch(), plan)


def wrong(manifest: Manifest, size: int, length: int) -> list[str]:
    return bind(manifest.dynamic, manifest.inputs, batch(size, length), manifest.conditions)[1]


BRANCHES: Mapping[str, tuple[Callable[[Tensor], bool], tuple[int, int]]] = {
    "sequence != 24": (lambda ids: ids.shape[1] == 24, (4, 24)),
    "sequence % 8 == 0": (lambda ids: ids.shape[1] % 8 == 0, (4, 12)),
    "batch <= sequence": (lambda ids: ids.shape[0] > ids.shape[1], (20, 8)),
    "sequence != batch": (lambda ids: ids.shape[0] == ids.shape[1], (8, 8)),
    "batch * sequence < 500": (lambda ids: ids.numel() < 500, (20, 40)),
    "batch + sequence <= 30": (lambda ids: sum(ids.shape) > 30, (12, 20)),
    "sequence * sequence <= 1000": (lambda ids: ids.shape[1] ** 2 > 1000, (4, 40)),
    "max(batch, sequence) < 20": (lambda ids: max(ids.shape) < 20, (2, 30)),
}


@pytest.mark.parametrize("condition", BRANCHES)
def test_sizes_for_which_the_model_goes_another_way_are_refused(condition: str) -> None:
    asked, other = BRANCHES[condition]
    model = Changed(lambda x, ids: x * 2 if asked(ids) else x)
    made = made_of(model)
    manifest = Manifest.from_json(made.manifest.to_json())
    texts = {condition, condition.replace("sequence != batch", "batch != sequence")}
    assert {each.text for each in manifest.conditions} & texts
    found = wrong(manifest, *other)
    assert len(found) == 1
    assert f"the model goes the same way only where {manifest.conditions[0].text} (test_sizes.py:" in found[0]
    same = [(4, 16), (2, 8)] if "8" in condition else [(4, 16), (3, 14)]
    assert worst_error(model, made, [batch(*each) for each in same], lambda loss: loss) < 1e-12


def test_a_length_of_the_whole_table_may_be_had() -> None:
    """Torch asks whether a slice is all of it, to know its strides; that is nothing that the model asks."""
    made = made_of(Attention(lambda ids: torch.ones(40, 40).tril().bool()[: ids.shape[1], : ids.shape[1]]))
    assert made.manifest.conditions == ()
    assert wrong(made.manifest, 4, 40) == []
    model = Changed(
        lambda x, ids: x * 2 if torch.ones(40, 40)[: ids.shape[1], : ids.shape[1]].is_contiguous() else x
    )
    assert [each.text for each in made_of(model).manifest.conditions] == ["sequence != 40"]


def test_a_model_that_asks_for_nothing_has_no_conditions() -> None:
    for model in (Changed(), Attention(lambda _: None)):
        assert made_of(model).manifest.conditions == ()


def test_verify_takes_sizes_that_the_model_goes_the_same_way_for() -> None:
    made = made_of(Changed(lambda x, ids: x * 2 if ids.shape[1] % 8 == 0 else x))
    assert other_sizes(made.manifest) == {"batch": 5, "sequence": 24}


@pytest.mark.parametrize(
    "change",
    [
        lambda x, ids: x * (3 - ids.shape[1]) + 2 * ids.shape[0],
        lambda x, ids: x / (ids.shape[0] + ids.shape[1]) - (ids.shape[1] - 3),
        lambda x, ids: x + x[:, ids.shape[1] - 16 : ids.shape[1] - 12].sum(1, keepdim=True),
        lambda x, ids: x + (ids % (ids.shape[1] - 3))[..., None],
        lambda x, ids: x + x.roll(ids.shape[1] - 16, 1),
    ],
)
def test_sizes_in_arithmetic(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Also where a size is the op's default in the example, and no default elsewhere."""
    model = Changed(change)
    made = made_of(model)
    batches = [batch(*size) for size in ((4, 16), (8, 24), (3, 40))]
    assert worst_error(model, made, batches, lambda loss: loss) < 1e-12


def test_sizes_that_a_model_returns() -> None:
    made = made_of(Changed(result=lambda loss, ids: {"loss": loss, "count": ids.numel(), "name": "sequence"}))
    manifest = Manifest.from_json(made.manifest.to_json())
    assert manifest == made.manifest
    assert [spec.value for spec in manifest.at({"batch": 8, "sequence": 24}).outputs[1:]] == [192, "sequence"]


@pytest.mark.parametrize(
    "result",
    [
        lambda loss, ids: (loss, max(ids.shape[1], 5)),
        lambda loss, ids: (loss, ids.shape[1] > 5),
        lambda loss, ids: (loss, ids.shape[1] // 2),
        lambda loss, ids: (loss, f"{ids.shape[1]} tokens"),
        lambda loss, ids: (loss, f"{ids.shape[1] > 5}"),
    ],
)
def test_sizes_that_cannot_be_returned(result: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(CaptureError, match="output"):
        made_of(Changed(result=result))


def test_an_axis_that_is_split_into_dims() -> None:
    model = Changed(lambda x, ids: x.view(x.shape[0], -1, 4, 16).cumsum(2).view(*ids.shape, 16))
    with pytest.raises(FxparError) as error:
        made_of(model)
    assert isinstance(error.value, PlanError)
    assert str(error.value) == (
        "Plan(dynamic=...): axis `sequence` cannot be dynamic: the model splits it into several dims\n"
        "  it is only a part of dim 1 of `ids`\n"
        "  leave `sequence` out of `dynamic`"
    )


def test_costs_of_stages_are_those_of_the_example() -> None:
    model = Changed().double()
    plans = (Plan(pp=2, microbatches=2, dynamic=["batch", "sequence"]), Plan(pp=2, microbatches=2))
    dynamic, fixed = (partitioned(model, batch(), plan).manifest.stages for plan in plans)
    assert [stage.costs for stage in dynamic] == [stage.costs for stage in fixed]
    assert all(type(stage.costs.kept_bytes) is int for stage in dynamic)
