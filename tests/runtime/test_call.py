"""Arguments of a rank by position: those of the model's forward, whatever order the example gave them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture.arguments import positional
from fxpar.capture.capture import capture
from fxpar.errors import RankError
from fxpar.parts import ModelWeights, reader
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import alone
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.rank import Rank


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8).double()

    def forward(self, first: Tensor, second: Tensor) -> Any:
        return (self.up(first) - second).sum()


class Several(Two):
    def forward(self, *each: Tensor, scale: Tensor) -> Any:  # type: ignore[override]
        return (self.up(each[0]) - each[1] * scale).sum()


def rank_of(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> Rank:
    plan = Plan()
    program = capture(model, args, kwargs)
    made = split(program, plan)
    manifest = Manifest.from_json(made.manifest.to_json())
    return assemble(manifest, made.texts, alone(made.mesh), reader(made, 0, ModelWeights(program)))


A, B = torch.ones(4, 8, dtype=torch.float64), torch.full((4, 8), 3.0, dtype=torch.float64)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(A, B),
        lambda m: m(A, second=B),
        lambda m: m(second=B, first=A),
        lambda m: m(first=A, second=B),
    ],
)
def test_arguments_by_position_are_those_of_forward(call: Callable[[Any], Any]) -> None:
    model = Two()
    rank = rank_of(model, second=B, first=A)
    (found,) = call(rank)
    torch.testing.assert_close(found, call(model))


def test_arguments_of_any_number() -> None:
    model = Several()
    assert positional(model) == ("*each",)
    (found,) = rank_of(model, A, B, scale=A)(A, B, scale=A)
    torch.testing.assert_close(found, model(A, B, scale=A))


def test_arguments_that_are_too_many_or_given_twice() -> None:
    rank = rank_of(Two(), A, B)
    with pytest.raises(RankError) as error:
        rank(A, B, A, first=B)
    assert str(error.value) == (
        "the inputs do not fit the captured model\n"
        "  3 arguments by position, and the model takes 2: first, second\n"
        "  `first` is given twice"
    )
