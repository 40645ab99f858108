"""From a flat graph to a readable Python module."""

from fxpar.emit.load import load_module
from fxpar.emit.module import emit_module

__all__ = ["emit_module", "load_module"]
