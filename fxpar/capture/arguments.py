"""The arguments of a call by name, as `Program.flat_inputs` takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxpar.capture.tree import same
from fxpar.errors import CaptureError


def positional(model: nn.Module) -> tuple[str, ...]:
    """The names that arguments of `forward` given by position have, in order; `*names` takes all further ones."""
    found = inspect.signature(model.forward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(
        f"*{each.name}" if each.kind is inspect.Parameter.VAR_POSITIONAL else each.name
        for each in found
        if each.kind in (*named, inspect.Parameter.VAR_POSITIONAL)
    )


def arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of `model(*args, **kwargs)`, in the order in which they are given.

    What `*names` of the signature takes is one tuple under that name. Raises CaptureError where the arguments do not
    fit `forward`.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        what = f"the inputs do not fit `{type(model).__name__}.forward`: {error}"
        raise CaptureError(what, details=[f"forward{signature}"]) from None
    return dict(signature.bind_partial(*args).arguments) | dict(kwargs)


def is_default(model: nn.Module, name: str, value: Any) -> bool:
    """Whether an argument of `forward` has this value where a call leaves it out."""
    found = inspect.signature(model.forward).parameters.get(name)
    return found is not None and same(found.default, value)
