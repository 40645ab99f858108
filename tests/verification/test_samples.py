"""Ops that treat samples apart and are one op to torch: split over data ranks and microbatches, nothing gathered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxpar
from fxpar.errors import MixingError

VOCAB, WIDTH = 32, 8
PLANS = [fxpar.Plan(pp=2, microbatches=4), fxpar.Plan(tp=2, dp=2, microbatches=2), fxpar.Plan(dp=4)]


class Recurrent(nn.Module):
    """Two recurrent layers between tokens and logits."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.first = getattr(nn, kind)(WIDTH, 12, 2, **options)
        self.second = getattr(nn, kind)(12 * (2 if options.get("bidirectional") else 1), 12, batch_first=True)
        self.head = nn.Linear(12, VOCAB)
        self.turned = not options.get("batch_first")

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x, last = self.first(x.transpose(0, 1) if self.turned else x)
        x, _ = self.second(x.transpose(0, 1) if self.turned else x)
        states = sum(state.square().mean() for state in (last if isinstance(last, tuple) else (last,)))
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten()) + states


class Last(nn.Module):
    """A class for each text, from the last state alone."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.states, self.head = nn.Embedding(VOCAB, WIDTH), nn.LSTM(WIDTH, 12), nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        _, (state, _) = self.states(self.tokens(ids).transpose(0, 1))
        return F.cross_entropy(self.head(state[-1]), ids[:, 0] % 5)


class Given(nn.Module):
    """States come as torch wants them: [layers, batch, features], which begins with no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.head = nn.GRU(WIDTH, 12, 2, batch_first=True), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return F.mse_loss(self.head(self.states(x, state)[0]), x)


class Mixed(nn.Module):
    """Tokens mixed by Fourier transforms (Lee-Thorp et al. 2021, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        x = x + torch.fft.fftn(x, dim=(1, 2)).real
        x = x + torch.fft.irfft(torch.fft.rfft(x, dim=1), n=x.shape[1], dim=1)
        return F.cross_entropy(self.head(self.up(x).relu()).flatten(0, 1), ids.flatten())


class Pictures(nn.Module):
    """Convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.InstanceNorm2d(8, track_running_stats=True)])
        for norm in self.norms:
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer, norm in zip((self.first, self.second), self.norms):
            x = norm(layer(x)).relu()
        return F.cross_entropy(self.head(x.mean((2, 3))), y)


def texts() -> dict[str, Tensor]:
    return {"ids": torch.randint(VOCAB, (8, 6), generator=torch.Generator().manual_seed(0))}


def pictures() -> dict[str, Tensor]:
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"x": x, "y": torch.arange(8) % 5}


MODELS = {
    "lstm": lambda: (Recurrent("LSTM", batch_first=True), texts()),
    "lstm in both directions": lambda: (Recurrent("LSTM", bidirectional=True), texts()),
    "gru": lambda: (Recurrent("GRU"), texts()),
    "the last state": lambda: (Last(), texts()),
    "given states": lambda: (
        Given(),
        {"x": torch.ones(8, 5, WIDTH).double(), "state": torch.ones(2, 8, 12).double()},
    ),
    "rnn with dropout": lambda: (Recurrent("RNN", batch_first=True, dropout=0.4), texts()),
    "fourier": lambda: (Mixed(), texts()),
    "batch norm": lambda: (Pictures().eval(), pictures()),
}


@pytest.mark.parametrize("plan", PLANS, ids=["pp", "tp dp", "dp"])
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_apart(name: str, plan: fxpar.Plan) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    report = fxpar.verify(model.double(), kwargs=batch, plan=plan, simulate=True)
    assert report.ok, str(report)
    assert max(report.loss_error, report.gradient_error) < 1e-12
    texts = fxpar.partition(model, fxpar.Plan(dp=4), inputs=batch).texts
    assert not any(
        word in text for text in texts.values() for word in ("fxpar.all_gather", "fxpar.all_to_all")
    )


def test_batch_norm_in_training_is_refused() -> None:
    with pytest.raises(MixingError, match=r"aten.batch_norm.default"):
        fxpar.verify(Pictures().double(), kwargs=pictures(), plan=PLANS[0], simulate=True)
