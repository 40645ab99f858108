"""What a node calls: its name in tables of rules, its text in code, and what has to be imported for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fxpar.capture.functions import FunctionCall
from fxpar.capture.leaves import Leaves
from fxpar.errors import EmitError

#: Modules whose functions are written with the module's name before them.
_PLAIN = ("operator", "math")


@dataclass(frozen=True)
class Callee:
    """The text of what is called; `name` has to be imported from `module`, or `module` itself if there is no name."""

    text: str
    module: str = ""
    name: str = ""


def op_name(target: Any) -> str:
    """Return the name of an op in tables of rules: `aten.add.Tensor`, `operator.add`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, FunctionCall):
        return target.path
    if isinstance(target, Leaves):
        return f"fxpar.{target.__name__}"
    return f"{target.__module__.removeprefix('_')}.{target.__qualname__}"


def word(target: Any) -> str:
    """Return what a call is called in short: `linear`, `add`, `silu`."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2].strip("_")
    return str(target.__name__).strip("_")


def callee(target: Any) -> Callee:
    """Return how a target is written. Raises EmitError for what no other module can import, or is no op."""
    if isinstance(target, torch._ops.OpOverload):
        return Callee(f"torch.ops.{target}")
    if isinstance(target, FunctionCall):
        return _function(target)
    if isinstance(target, Leaves):
        return Callee("self.leaves")
    module, name = target.__module__.removeprefix("_"), target.__qualname__
    if module == "torch" or module.startswith("torch."):
        return Callee(f"{module}.{name}")
    if module in _PLAIN:
        return Callee(f"{module}.{name}", module)
    if module.startswith("fxpar.") and "." not in name:
        return Callee(name, module, name)
    raise EmitError(f"`{module}.{name}` in the graph is no op")


def _function(target: FunctionCall) -> Callee:
    module, _, name = target.path.partition(":")
    if "<locals>" in name or module == "__main__":
        details = ["the emitted module has to import it: define it at the top of an importable module"]
        raise EmitError(f"autograd.Function `{name}` of `{module}` cannot be imported", details=details)
    return Callee(f"{name}.apply", module, name.partition(".")[0])
