"""A model in a Python file or module: find the attribute that makes it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxpar.errors import FxparError, ModelError, Place

#: Files of models are loaded under this name and their own, so that `torch.py` does not shadow torch.
PREFIX = "fxpar_model_"
#: What a file is asked for if no attribute is named.
USUAL = ("model", "build")


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own; files beside it can be imported while it runs.

    Raises ModelError, naming the line, for whatever goes wrong in it.
    """
    name = PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ModelError(f"`{path}` is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with beside(path), blamed(path):
            spec.loader.exec_module(module)
    except ModelError:
        _put_back(name, before)
        raise
    return module


def load_module(name: str) -> ModuleType:
    """Import a module by name. Raises ModelError if it cannot be found, or fails."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(f"there is no module `{name}`") from None
        raise ModelError(f"module `{name}` cannot be imported: {error}") from error
    except Exception as error:
        raise ModelError(f"module `{name}` cannot be imported: {type(error).__name__}: {error}") from error


def find_attribute(module: ModuleType, name: str | None, origin: str) -> tuple[str, Any]:
    """The name and value of what makes the model. Raises ModelError that lists what there is."""
    if name is not None:
        value: Any = module
        for part in name.split("."):
            if not hasattr(value, part):
                raise ModelError(f"`{origin}` has no `{name}`", details=_choices(module))
            value = getattr(value, part)
        return name, value
    for usual in USUAL:
        if hasattr(module, usual):
            return usual, getattr(module, usual)
    single = [key for key, value in vars(module).items() if isinstance(value, nn.Module)]
    if len(single) == 1:
        return single[0], getattr(module, single[0])
    raise ModelError(f"`{origin}` does not say what its model is", details=_choices(module))


def make(value: Any, origin: str, options: dict[str, Any]) -> nn.Module:
    """The model itself: an instance, or what a class or function returns. Raises ModelError."""
    if isinstance(value, nn.Module):
        if options:
            raise ModelError(f"`{origin}` is a model already, and takes no option `{next(iter(options))}`")
        return value
    if not callable(value):
        raise ModelError(f"`{origin}` is a {type(value).__name__}, and no model, class or function")
    model = value(**options)
    if not isinstance(model, nn.Module):
        raise ModelError(f"`{origin}` returns a {type(model).__name__}, and no torch.nn.Module")
    return model


@contextmanager
def beside(path: Path) -> Iterator[None]:
    """Let files in the folder of `path` be imported."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Turn an exception into a ModelError at the line of `path` where it happened."""
    try:
        yield
    except FxparError:
        raise
    except SyntaxError as error:
        place = Place(str(path), error.lineno or 1, error.offset or 1, (error.text or "").rstrip("\n"))
        raise ModelError(f"{type(error).__name__}: {error.msg}", place=place) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{type(error).__name__}: {error}", place=_place(path, error)) from error


def _place(path: Path, error: BaseException) -> Place | None:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if not frames:
        return None
    frame = frames[-1]
    text = path.read_text(encoding="utf-8").splitlines()[(frame.lineno or 1) - 1]
    return Place(str(path), frame.lineno or 1, (frame.colno or 0) + 1, text)


def _put_back(name: str, before: ModuleType | None) -> None:
    if before is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = before


def _choices(module: ModuleType) -> list[str]:
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, nn.Module) or getattr(value, "__module__", None) == module.__name__)
        and (isinstance(value, nn.Module) or callable(value))
    }
    if not own:
        return ["there is no model, class or function in it; define one, or a function `build`"]
    return [f"name one of them: {', '.join(own)}"]
