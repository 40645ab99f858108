"""Load an emitted module: from its file, or from its text."""

from __future__ import annotations

import hashlib
import linecache
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from fxpar.errors import EmitError


def load_module(source: Path | str) -> type[nn.Module]:
    """Return the class of an emitted module, given the path of its file or its text.

    The file is read from where it is; no search path is changed. Raises EmitError if it is not there or is no emitted
    module.
    """
    text, place = _read(source)
    name = f"fxpar_emitted_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        _execute(name, text, place)
    module = sys.modules[name]
    found: type[nn.Module] = getattr(module, module.__all__[0])
    return found


def _read(source: Path | str) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return source, f"<fxpar {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    try:
        return Path(source).read_text(encoding="utf-8"), str(source)
    except OSError as reason:
        raise EmitError(f"{source}: cannot be read: {reason.strerror}") from reason


def _execute(name: str, text: str, place: str) -> None:
    """Run a module's text under a name of its own; its lines are kept for tracebacks and for torch.compile."""
    module = ModuleType(name)
    module.__file__ = place
    try:
        exec(compile(text, place, "exec"), module.__dict__)
    except SyntaxError as reason:
        raise EmitError(f"{place}:{reason.lineno}: is no Python: {reason.msg}") from reason
    if not getattr(module, "__all__", None):
        raise EmitError(f"{place}: is no module that fxpar emitted", details=["it has no `__all__`"])
    linecache.cache[place] = (len(text), None, text.splitlines(True), place)
    sys.modules[name] = module
