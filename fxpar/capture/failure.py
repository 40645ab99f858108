"""Turn what goes wrong inside `torch.export` into an error that names the model's line and a remedy."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from fxpar.errors import CaptureError, ModelError

_OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_DATA_DEPENDENT = ("DataDependent", "data-dependent", "unbacked", "GuardOnDataDependent", "item()", "nonzero")


def failure(model: nn.Module, error: BaseException) -> CaptureError:
    """The error for a model whose capture raised `error`: class, line, short reason, remedy."""
    place = line(model, error)
    reason = _reason(error)
    what = f"`{type(model).__name__}` cannot be captured" + (f": {place}" if place else "")
    return CaptureError(what, details=[f"{type(error).__name__}: {reason}", *_remedy(error)])


def does_not_run(model: nn.Module, error: BaseException) -> ModelError:
    """The error for a model that raised `error` when it was run: class, line, short reason."""
    place = line(model, error)
    what = f"`{type(model).__name__}` does not run on these inputs" + (f": {place}" if place else "")
    return ModelError(what, details=[f"{type(error).__name__}: {_reason(error)}"])


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def line(model: nn.Module, error: BaseException) -> str:
    """`file.py:12 in forward: code` of the deepest frame in a file that defines a module of the model."""
    files = {sys.modules[type(module).__module__].__dict__.get("__file__") for module in model.modules()}
    files -= {file for file in files if file is None or file.startswith(_OWN)}
    for link in list(_chain(error))[::-1]:
        frames = [frame for frame in traceback.extract_tb(link.__traceback__) if frame.filename in files]
        if frames:
            frame = frames[-1]
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}"
    return ""


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return next(line.strip() for line in text.splitlines() if line.strip())[:300]


def _remedy(error: BaseException) -> list[str]:
    text = " ".join(f"{type(link).__name__} {link}" for link in _chain(error))
    if any(word in text for word in _DATA_DEPENDENT):
        return [
            "the line depends on the values of a tensor, which one graph cannot follow",
            "rewrite it without `if`, loop or `.item()` on a tensor, or choose another implementation of that module",
        ]
    if "fake tensor in the exported program" in text:
        return ["a tensor reaches the graph through an attribute or a closure; register it as a buffer"]
    return [
        "run the model once on these inputs: if that works, the line does something that tracing cannot follow"
    ]
