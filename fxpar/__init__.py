"""fxpar splits unmodified PyTorch models over device meshes.

import fxpar

plan = fxpar.Plan(tp=2, pp=2)
report = fxpar.verify(model, kwargs=inputs, plan=plan, simulate=True)

with fxpar.together():  # under torchrun
    module = fxpar.parallelize(model, plan, kwargs=inputs)
    loss = module.step(inputs)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxpar.api import infer_axes, load, parallelize, partition, together, verify
    from fxpar.errors import FxparError
    from fxpar.plan import Plan

__all__ = ["FxparError", "Plan", "infer_axes", "load", "parallelize", "partition", "together", "verify"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch, or anything that is installed, when it is first asked for."""
    if name == "Plan":
        from fxpar import plan

        return plan.Plan
    if name == "FxparError":
        from fxpar import errors

        return errors.FxparError
    if name in __all__:
        from fxpar import api

        return getattr(api, name)
    raise AttributeError(f"module `fxpar` has no attribute `{name}`")
