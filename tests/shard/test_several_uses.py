"""A sum that consumers want in several placements is completed once, and one is made of the other."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from shard_case import Case, Run, rows
from shard_models import FFN, VOCAB, WIDTH, tokens
from torch import Tensor, nn

EXACT = 1e-9


class Bare(nn.Module):
    """Residual blocks without norms: each sum is wanted by the stream and by the next block."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.ups = nn.ModuleList(nn.Linear(WIDTH, FFN) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(FFN, WIDTH) for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.tokens(ids)
        for up, down in zip(self.ups, self.downs):
            y = down(up(y).relu()) + y.tanh()
            y = down(up(y.sin()).relu())
            y = self.norm(y) + up(y).relu().sum(-1, keepdim=True)
        return y


def inserted(run: Run) -> Counter[str]:
    names = (str(node.target) for node in run.sharded.graph.nodes)
    return Counter(name.split(".")[1] for name in names if name.startswith("fxpar."))


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    return Case(Bare().double(), {"ids": tokens()})


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2"])
@pytest.mark.parametrize("table", ["ffn: tp", "ffn: tp\nvocab: tp", "ffn: tp\nvocab: tp\nsequence: [cp, tp]"])
def test_exact(case: Case, mesh: str, table: str) -> None:
    run = case.check(mesh, rows(table))
    assert run.error < EXACT, str(run)
    assert "all_reduce_both" not in inserted(run)


class Twice(nn.Module):
    """A product that one consumer takes as it is and another one into split work."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.again = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH), nn.Linear(WIDTH, FFN)
        self.last = nn.Linear(FFN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(self.up(x).relu())
        return self.norm(y), self.last(self.again(y).relu())


def test_the_whole_is_made_once() -> None:
    torch.manual_seed(0)
    run = Case(Twice().double(), {"x": torch.randn(4, 16, WIDTH, dtype=torch.float64)}).check(
        "tp2", rows("ffn: tp")
    )
    assert run.error < EXACT, str(run)
    assert inserted(run) == Counter(all_reduce=2, sum_gradient=1, keep_on_first=2)
    counter = run.counters[0]
    assert (counter.calls(phase="forward"), counter.calls(phase="backward")) == (2, 1)
