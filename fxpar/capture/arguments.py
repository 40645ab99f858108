"""The arguments of a call by name, as `Program.flat_inputs` takes them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fxpar.errors import CaptureError


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
