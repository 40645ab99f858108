"""What errors are relative to."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fxpar
from fxpar.checkpoint.weights import FileWeights, TensorWeights
from fxpar.errors import ModelError
from fxpar.verification.reference import Reference, relative
from fxpar.verification.subject import subject

INF = math.inf


@pytest.fixture
def reference() -> Reference:
    """One with a scale of 2 for `x`."""
    return Reference("float32", 1.0, 1.0, (), {"lr": 1e-3}, {"x": 2.0, "none": 0.0}, TensorWeights({}))


@pytest.mark.parametrize(
    ("found", "whole", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.5], 0.25),
        ([1.0, math.nan], [1.0, 2.0], INF),
        ([-INF, 2.0], [-INF, 2.5], 0.25),
        ([-INF, 2.0], [1.0, 2.0], INF),
        ([1.0], [1.0, 2.0], INF),
        ([], [], 0.0),
        ([1, 2], [1, 2], 0.0),
        ([1, 3], [1, 2], INF),
    ],
)
def test_errors(reference: Reference, found: list[float], whole: list[float], error: float) -> None:
    assert reference.error("x", torch.tensor(found), torch.tensor(whole)) == error


def test_no_scale(reference: Reference) -> None:
    assert reference.error("none", torch.zeros(2), torch.zeros(2)) == 0
    assert reference.error("none", torch.ones(2), torch.zeros(2)) == INF
    assert relative(0.0, 0.0) == 0


class Small(nn.Module):
    """Its bias has a gradient that is zero but for rounding, in a model whose others are large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 100.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (x * self.weight).sum() + ((self.bias + 1e16) - 1e16).sum() * 1e-14}


@pytest.fixture
def small() -> Reference:
    """The reference of `Small`."""
    return subject(Small(), (torch.ones(3, 4, dtype=torch.float64),), {}, fxpar.Plan()).reference()


def test_small_gradients_are_measured_by_the_largest(small: Reference) -> None:
    assert small.loss == 1200
    assert small.scales["loss"] == 1200
    assert small.scales["gradient:weight"] == small.step["eps"] == 3
    assert small.scales["gradient:bias"] == pytest.approx(3 * 1e-9**0.5)
    assert small.norm == pytest.approx(6)


def test_one_step_of_adamw(small: Reference) -> None:
    expected = 100 * (1 - 1e-5) - 1e-3 * 3 / (3 + 3)
    torch.testing.assert_close(
        small.tensors.read("updated:weight"), torch.full((4,), expected, dtype=torch.float64)
    )


def test_saved_and_loaded(small: Reference, tmp_path: Path) -> None:
    small.save(tmp_path)
    again = Reference.load(tmp_path)
    for key in ("dtype", "loss", "norm", "roots", "step", "scales", "tolerance"):
        assert getattr(again, key) == getattr(small, key)
    assert {*again.tensors.names()} == {*small.tensors.names()}
    assert torch.equal(again.tensors.read("updated:bias"), small.tensors.read("updated:bias"))


class Cancelling(Small):
    """Its loss is nothing but rounding, as that of policies in the step in which they were sampled."""

    def forward(self, _: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * torch.tensor([1.0, -1.0, 2.0, -2.0])).sum()}


def test_a_loss_whose_terms_cancel_is_measured_by_them() -> None:
    found = subject(Cancelling(), (torch.ones(3, 4, dtype=torch.float64),), {}, fxpar.Plan()).reference()
    assert found.loss == 0
    assert found.scales["loss"] == found.scales["output:0"] == pytest.approx(100 * 10**0.5 * 1e-9**0.5)


class Shown(Small):
    """It returns a parameter as it is."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**super().forward(x), "weight": self.weight}


def test_outputs_are_those_before_the_step() -> None:
    found = subject(Shown(), (torch.ones(3, 4, dtype=torch.float64),), {}, fxpar.Plan()).reference()
    assert torch.equal(found.tensors.read("output:1"), Shown().weight.detach())


class Masked(Small):
    """It has a buffer of booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False]))


def test_buffers_of_booleans() -> None:
    found = subject(Masked(), (torch.ones(3, 4, dtype=torch.float64),), {}, fxpar.Plan()).reference()
    assert found.scales["updated:mask"] == 1


class Cached(Small):
    """It makes a buffer on first use and counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.register_buffer("scale", None, persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.runs += 1
        if self.scale is None:
            self.register_buffer("scale", x.new_full((4,), 2.0), persistent=False)
        return super().forward(x * self.scale)


def test_the_model_stays_as_it_was() -> None:
    model, batch = Cached(), (torch.ones(3, 4, dtype=torch.float64),)
    made = subject(model, batch, {}, fxpar.Plan())
    assert made.reference().loss == made.reference().loss
    assert model.runs == 0
    assert not dict(model.named_buffers())


class Table(nn.Module):
    """It reads rows of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.rows(ids)
        return rows


def test_a_model_that_does_not_run() -> None:
    ids = torch.tensor([1, 9])
    with pytest.raises(ModelError) as caught:
        subject(Table(), (ids,), {}, fxpar.Plan()).reference()
    head, reason = str(caught.value).splitlines()
    assert head.startswith("`Table` does not run on these inputs: test_reference.py:")
    assert head.endswith(" in forward: rows: torch.Tensor = self.rows(ids)")
    assert reason == "  IndexError: index out of range in self"


def test_weights_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """A mode that makes float64 of float32 must not be on while files are read."""
    model = Small()
    stored = {name: tensor.detach().float() for name, tensor in model.named_parameters()}
    save_file(stored, tmp_path / "model.safetensors")
    weights, x = FileWeights.of(tmp_path), torch.ones(3, 4, dtype=torch.float64)
    found = subject(model, (x,), {}, fxpar.Plan(), weights=weights)
    assert found.exact
    assert found.reference().loss == 1200
