"""Build a model without its weights, or with weights that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Random tensors of at least this many elements are taken for parameters to be, and are made on meta at once.
LARGE = 2**20
_RANDOM = (torch.ops.aten.randn, torch.ops.aten.rand, torch.ops.aten.normal)


@contextmanager
def construction(*, real: bool, seed: int = 0, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Build models inside: with real weights drawn under `seed`, or with parameters on the meta device.

    On meta, a parameter is moved there when a module registers it, so that at most one at a time has memory, and
    that of `torch.empty` is never touched. Buffers are real either way. `dtype` is the default one meanwhile. The
    global random state, dtype and patches are put back.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(dtype or default)
        torch.manual_seed(seed)
        if not real:
            stack.enter_context(_registered_on_meta())
            stack.enter_context(_no_rejection())
            stack.enter_context(_LargeOnMeta())  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _registered_on_meta() -> Iterator[None]:
    register = nn.Module.register_parameter

    def patched(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            _to_meta(param)

    nn.Module.register_parameter = patched  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _to_meta(parameter: nn.Parameter) -> None:
    """Move a parameter to meta and keep the object, so that ties hold."""
    if parameter.is_meta:
        return
    meta = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
    vars(meta).update(vars(parameter))
    torch.utils.swap_tensors(parameter, meta)  # type: ignore[no-untyped-call]


@contextmanager
def _no_rejection() -> Iterator[None]:
    """Let `trunc_normal_` leave meta tensors alone: it looks at the values that it has drawn."""
    draw: Callable[..., Any] = nn.init._no_grad_trunc_normal_

    def patched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    nn.init._no_grad_trunc_normal_ = patched
    try:
        yield
    finally:
        nn.init._no_grad_trunc_normal_ = draw


class _LargeOnMeta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes large random tensors on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in _RANDOM:
            return func(*args, **kwargs)
        meta = func(*args, **{**kwargs, "device": torch.device("meta")})
        return meta if meta.numel() >= LARGE else func(*args, **kwargs)
