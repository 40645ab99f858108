"""Turn what goes wrong inside `torch.export` into an error that names the model's line and a remedy."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
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
    return CaptureError(what, details=[f"{type(error).__name__}: {reason}", *_remedy(model, error)])


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
    stacks = (traceback.extract_tb(link.__traceback__) for link in list(_chain(error))[::-1])
    return next(filter(None, (deepest(model, stack) for stack in stacks)), "")


def deepest(model: nn.Module, stack: Iterable[traceback.FrameSummary]) -> str:
    """`file.py:12 in forward: code` of the deepest frame of a stack in a file that defines a module of the model."""
    files = {sys.modules[type(module).__module__].__dict__.get("__file__") for module in model.modules()}
    files -= {file for file in files if file is None or file.startswith(_OWN)}
    frames = [frame for frame in stack if frame.filename in files]
    if not frames:
        return ""
    frame = frames[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}"


def _reason(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return next(line.strip() for line in text.splitlines() if line.strip())[:300]


def _remedy(model: nn.Module, error: BaseException) -> list[str]:
    text = " ".join(f"{type(link).__name__} {link}" for link in _chain(error))
    if "fake tensor in the exported program" in text:
        return ["a tensor reaches the graph through an attribute or a closure; register it as a buffer"]
    depends = any(word in text for word in _DATA_DEPENDENT)
    said = "the line depends on the values of a tensor, which one graph cannot follow"
    if not depends:
        said = "run the model once on these inputs: if that works, the line does something that tracing cannot follow"
    path = innermost(model, error)
    if path:
        return [
            said,
            f"{_another(model)}, or keep it whole: --opaque '{_alike(model, path)}'",
        ]
    if depends and path == "":
        return [
            said,
            "it is in the forward of the model itself, which cannot be kept whole",
            "leave out the input that it looks at (`labels`: compute the loss outside), or rewrite the line",
        ]
    return [said, "rewrite it, or choose another implementation of that module"] if depends else [said]


def innermost(model: nn.Module, error: BaseException) -> str | None:
    """The path of the innermost module of the model in whose code an error was raised; None where that is nowhere."""
    paths = {id(module): path for path, module in model.named_modules()}
    for link in list(_chain(error))[::-1]:
        owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(link.__traceback__)]
        found: list[str] = [
            paths[id(owner)] for owner in owners if isinstance(owner, nn.Module) and id(owner) in paths
        ]
        if found:
            return found[-1]
    return None


def _alike(model: nn.Module, path: str) -> str:
    """A pattern for a module and all of its class at the same place of other layers: `blocks.*.experts`."""
    kind = type(model.get_submodule(path))
    pattern = ".".join("*" if word.isdigit() else word for word in path.split("."))
    fitting = [other for name, other in model.named_modules() if fnmatchcase(name, pattern)]
    return pattern if all(type(other) is kind for other in fitting) else path


def _another(model: nn.Module) -> str:
    """Advice to take another implementation of a module, by name for the experts of transformers' models."""
    if getattr(getattr(model, "config", None), "_experts_implementation", "") == "eager":
        return "build the model with experts_implementation='batched_mm' or 'grouped_mm'"
    return "choose another implementation of the module"
