"""What fails on one rank fails on all, and what each gives is known to all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxpar.errors import CheckpointError, RankError
from fxpar.mesh import Mesh
from fxpar.runtime.agree import agreed, exchange, fingerprint
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

MESH = Mesh({"tp": 3})


class Rank:
    """As much of a rank as is needed."""

    def __init__(self, groups: Groups) -> None:
        self.groups, self.parameters = groups, nn.Linear(1, 1).parameters


def test_texts_of_all_ranks() -> None:
    texts = ["", "née", "x" * 100]
    found = simulate(MESH, lambda number, groups: exchange(Rank(groups), texts[number]))
    assert found == [texts] * 3
    assert simulate(MESH, lambda _, groups: exchange(Rank(groups), "")) == [["", "", ""]] * 3
    assert exchange(Rank(alone(Mesh({"tp": 1}))), "me") == ["me"]


def test_nobody_goes_on_alone() -> None:
    def work(number: int) -> None:
        if number == 1:
            raise CheckpointError("no room", details=["free some"])

    def body(number: int, groups: Groups) -> str:
        with pytest.raises((CheckpointError, RankError)) as caught, agreed(Rank(groups)):
            work(number)
        return f"{type(caught.value).__name__}: {caught.value}"

    others = "RankError: rank 1 has failed: no room\n  free some"
    assert simulate(MESH, body) == [others, "CheckpointError: no room\n  free some", others]


def test_each_raises_its_own_error() -> None:
    def body(number: int, groups: Groups) -> str:
        with pytest.raises(ValueError, match=f"^{number}$"), agreed(Rank(groups)):
            raise ValueError(str(number))
        return "raised"

    assert simulate(MESH, body) == ["raised"] * 3


def test_all_go_on() -> None:
    def body(_: int, groups: Groups) -> int:
        with agreed(Rank(groups)):
            pass
        return 1

    assert simulate(MESH, body) == [1, 1, 1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5),
        torch.zeros(3, 0, 2),
        torch.ones(4, 5, dtype=torch.bfloat16),
        torch.ones(4, 5, dtype=torch.complex64).T,
        torch.ones(2, dtype=torch.bool),
        torch.arange(24).reshape(2, 3, 4).transpose(0, 2),
    ],
)
def test_every_tensor_has_one(tensor: torch.Tensor) -> None:
    assert fingerprint(tensor) == fingerprint(tensor.clone())
    assert fingerprint(tensor) != fingerprint(tensor[None])
    if tensor.numel():
        changed = tensor.clone().contiguous()
        changed.view(-1)[-1] = 0
        assert fingerprint(changed) != fingerprint(tensor)
