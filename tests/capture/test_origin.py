"""Where a node comes from."""

from __future__ import annotations

import pytest
import torch

from fxpar.capture.origin import line_of, module_of


@pytest.mark.parametrize(
    ("stack", "origin"),
    [
        (None, ("", 0)),
        ({"L__self__": ("", "Shell")}, ("", 0)),
        ({"a": ("", "Shell"), "b": ("root", "Net")}, ("", 0)),
        ({"a": ("", "Shell"), "b": ("root.layers.0", "Layer")}, ("layers.0", 0)),
        ({"a": ("", "Shell"), "b@2": ("root.layers.0@2", "Layer")}, ("layers.0", 2)),
        ({"a@1": ("root.outer@1", "Outer"), "b": ("root.outer.inner", "Inner")}, ("outer.inner", 0)),
    ],
)
def test_module(stack: dict[str, tuple[str, str]] | None, origin: tuple[str, int]) -> None:
    assert module_of(stack, "root") == origin


def test_line() -> None:
    frames = [
        '  File "models/net.py", line 12, in forward',
        "    return self.linear(x)",
        f'  File "{torch.nn.modules.linear.__file__}", line 134, in forward',
    ]
    assert line_of("\n".join(frames)) == "net.py:12"
    assert line_of("\n".join(frames[2:])) == ""
    assert line_of(None) == ""
