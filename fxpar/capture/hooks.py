"""What acts on gradients beside the ops of forward, and would be lost in a graph: refused, with the line."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxpar.capture.failure import deepest
from fxpar.errors import CaptureError

#: Where it is called -> what it is, and what does the same.
_CALLS: dict[tuple[Any, str], tuple[str, str]] = {
    (Tensor, "register_hook"): (
        "puts a hook on a gradient",
        "write a torch.autograd.Function, whose backward does what the hook does",
    ),
    (Tensor, "register_post_accumulate_grad_hook"): (
        "puts a hook on a gradient",
        "do what the hook does after the step",
    ),
    (torch.autograd, "grad"): (
        "takes a gradient",
        "compute it outside of the model; no graph of a forward call has it",
    ),
}


@contextmanager
def no_gradient_calls(model: nn.Module) -> Iterator[None]:
    """Raise CaptureError, naming the line, where the model puts hooks on gradients, or takes some, in forward."""
    kept = {place: getattr(*place) for place in _CALLS}

    def refusal(what: str, remedy: str) -> Callable[..., Any]:
        def refuse(*_: Any, **__: Any) -> Any:
            place = deepest(model, traceback.extract_stack())
            at = f": {place}" if place else ""
            raise CaptureError(f"`{type(model).__name__}` {what} in forward{at}", details=[remedy])

        return refuse

    try:
        for (owner, name), said in _CALLS.items():
            setattr(owner, name, refusal(*said))
        yield
    finally:
        for (owner, name), value in kept.items():
            setattr(owner, name, value)


def check_hooks(model: nn.Module) -> None:
    """Raise CaptureError for a model whose parameters or modules have hooks on their gradients already."""
    found = [
        f"the parameter `{name}`"
        for name, each in model.named_parameters()
        if each._backward_hooks or getattr(each, "_post_accumulate_grad_hooks", None)
    ]
    found += [
        f"the module `{name}`" if name else "the model itself"
        for name, each in model.named_modules()
        if each._backward_hooks or each._backward_pre_hooks
    ]
    if found:
        raise CaptureError(
            f"`{type(model).__name__}` has hooks on gradients, which no graph of its forward shows",
            details=[*found, "remove them, and do what they do after the step"],
        )
