"""Where a node comes from: its module, which call of it, and the line of the model's source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_OUTSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def module_of(stack: dict[str, Any] | None, prefix: str = "") -> tuple[str, int]:
    """Module path and number of the call, from export's module stack; `layer@1` is the second call of `layer`.

    `prefix` is the path of the model inside what was exported, and is cut off.
    """
    if not stack:
        return "", 0
    path, _ = list(stack.values())[-1]
    key = list(stack)[-1]
    call = key.rpartition("@")[2] if "@" in key else "0"
    path = re.sub(r"@\d+", "", path)
    if path == prefix:
        return "", int(call)
    return path.removeprefix(f"{prefix}."), int(call)


def line_of(trace: str | None) -> str:
    """`file.py:123` of the deepest frame that is not torch's; empty if there is none."""
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(trace or "")]
    model = [frame for frame in frames if not frame[0].startswith(_OUTSIDE)]
    return f"{Path(model[-1][0]).name}:{model[-1][1]}" if model else ""
