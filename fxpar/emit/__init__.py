"""From a flat graph to a readable Python module."""

from fxpar.emit.load import load_module as load_module
from fxpar.emit.module import emit_module as emit_module
