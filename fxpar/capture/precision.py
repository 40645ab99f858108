"""Running a model wholly in float64, also where its code asks for less.

Many models cast to float32 for norms, rotary tables or the loss, or to bfloat16 for a kernel. In a comparison in
float64 that rounds to 1e-7 or 1e-3, and hides what is compared; here such a cast keeps float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fxpar.runtime.experts import grouped_mm

_LESS = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (torch.Tensor.float, torch.Tensor.bfloat16, torch.Tensor.half)


class Float64(TorchFunctionMode):
    """Inside of it, torch functions that are asked for less precise floats give float64; also during capture."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        if func is torch.get_default_dtype:
            return func()
        args = tuple(_double(arg) for arg in args)
        options = {name: _double(value) for name, value in (kwargs or {}).items()}
        if func is torch._grouped_mm and args[0].dtype is torch.float64:
            operands = [value for value in (*args, *options.values()) if value is not None]
            return grouped_mm(*operands)
        return func(*args, **options)


def _double(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in _LESS else argument


def active() -> bool:
    """Whether `Float64` is on."""
    return any(isinstance(mode, Float64) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
