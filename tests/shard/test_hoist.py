"""Sums of gradients that are made once for a value, not once for each of its slices."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from shard_case import Case
from shard_models import BATCH, LENGTH, WIDTH, tokens
from torch import Tensor, nn

INNER, STATE, RANK = 64, 4, 4
EXACT = 1e-9


class Scan(nn.Module):
    """Gu and Dao 2023: a recurrence over an inner axis, whose coefficients are made from all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Embedding(96, WIDTH), nn.Linear(WIDTH, INNER)
        self.coefficients, self.step = nn.Linear(INNER, RANK + 2 * STATE), nn.Linear(RANK, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.relu(self.up(self.tokens(ids)))
        step, enter, leave = self.coefficients(h).split([RANK, STATE, STATE], -1)
        step = torch.sigmoid(self.step(step))
        state, found = h.new_zeros(BATCH, INNER, STATE), []
        for i in range(LENGTH):
            gain = step[:, i, :, None] * enter[:, i, None, :]
            state = 0.5 * state + gain * h[:, i, :, None]
            found.append((state @ leave[:, i, :, None])[:, :, 0])
        return self.down(torch.stack(found, 1))


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
def test_one_sum_for_all_slices(mesh: str) -> None:
    run = Case(Scan().double(), {"ids": tokens()}).check(mesh, "whole_sequence")
    assert run.error <= EXACT, str(run)
    assert _conversions(run.sharded.graph) == {"all_reduce": 1, "all_reduce_both": 2}


class Part(nn.Module):
    """Split work takes a few features of a wide value, and other work takes all."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = (
            nn.Embedding(96, WIDTH),
            nn.Linear(4, INNER),
            nn.Linear(INNER, WIDTH),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.tokens(ids))
        return x + self.down(torch.relu(self.up(x[..., :4])))


def test_a_small_slice_is_summed_alone() -> None:
    run = Case(Part().double(), {"ids": tokens()}).check("tp2", "whole_sequence")
    assert run.error <= EXACT, str(run)
    (node,) = (n for n in run.sharded.graph.nodes if "sum_gradient" in str(n.target))
    assert tuple(node.meta["val"].shape) == (BATCH, LENGTH, 4)


def _conversions(graph: torch.fx.Graph) -> Counter[str]:
    kinds = (str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("fxpar."))
    return Counter(kind for kind in kinds if kind not in ("embedding", "slice", "keep_on_first"))
