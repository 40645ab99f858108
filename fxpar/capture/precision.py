"""Running a model wholly in float64, also where its code asks for float32.

Many models cast to float32 for norms, rotary tables or the loss. In a comparison in float64 that rounds to 1e-7, and
hides what is compared; here such a cast keeps float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack


class Float64(TorchFunctionMode):
    """Inside of it, torch functions that are asked for float32 give float64; also while a model is captured."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        if func is torch.get_default_dtype:
            return func()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        options = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **options)


def active() -> bool:
    """Whether `Float64` is on."""
    return any(isinstance(mode, Float64) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
