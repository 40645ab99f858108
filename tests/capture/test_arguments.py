"""Arguments by name."""

from __future__ import annotations

import pytest
from torch import nn

from fxpar.capture import arguments
from fxpar.errors import CaptureError


class Net(nn.Module):
    def forward(self, x: int, y: int = 0, *more: int, flag: bool = False, **extra: int) -> None: ...


class Open(nn.Module):
    def forward(self, **kwargs: int) -> None: ...


def test_names() -> None:
    assert arguments(Net(), (1,), {"flag": True, "z": 3}) == {"x": 1, "flag": True, "z": 3}
    assert arguments(Net(), (1, 2, 3, 4), {}) == {"x": 1, "y": 2, "more": (3, 4)}
    assert list(arguments(Net(), (), {"y": 2, "x": 1})) == ["y", "x"]
    assert arguments(Open(), (), {"b": 1, "a": 2}) == {"b": 1, "a": 2}


def test_what_does_not_fit() -> None:
    with pytest.raises(
        CaptureError, match=r"do not fit `Net\.forward`: missing a required argument: 'x'\n  forward\("
    ):
        arguments(Net(), (), {})
    with pytest.raises(CaptureError, match="too many positional arguments"):
        arguments(Open(), (1,), {})
