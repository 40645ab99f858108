"""Emitted modules are loaded from where they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fxpar.emit import load_module
from fxpar.errors import EmitError

TEXT = """from torch import nn

__all__ = ["Same"]


class Same(nn.Module):
    def forward(self, x):
        return (x,)
"""


def test_text_and_file_give_one_class(tmp_path: Path) -> None:
    path = tmp_path / "same.py"
    path.write_text(TEXT, encoding="utf-8")
    before = list(sys.path)
    assert load_module(path) is load_module(TEXT)
    assert load_module(str(path))()(3) == (3,)
    assert sys.path == before


def test_traceback_shows_the_line() -> None:
    module = load_module(TEXT.replace("(x,)", "x.missing"))
    with pytest.raises(AttributeError) as caught:
        module()(1)
    assert str(caught.traceback[-1].statement).strip() == "return x.missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "is no module that fxpar emitted\n  it has no `__all__`"),
        ("x = (\n", ":1: is no Python: '(' was never closed"),
    ],
)
def test_other_text_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EmitError) as caught:
        load_module(path)
    assert str(caught.value).endswith(message)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmitError, match=r"none\.py: cannot be read: No such file"):
        load_module(tmp_path / "none.py")
