"""A model whose tensors are fakes on the CPU for a while: captures alike from meta and from real weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def fake_mode(symbols: bool = False) -> FakeTensorMode:
    """A mode for one capture; real constants of the model may take part in it. With `symbols`, sizes may be such."""
    if symbols:
        environment = ShapeEnv(tracked_fakes=[], trace_asserts=True)
        return FakeTensorMode(allow_non_fake_inputs=True, shape_env=environment, export=True)
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake CPU tensor with the sizes, strides, dtype and kind (parameter or not) of `tensor`; it has no memory."""
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


@contextmanager
def faked(model: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Replace the model's parameters and buffers by fakes, ties by identity; put everything back afterwards.

    Attributes that hold a parameter beside its registration (as `nn.LSTM` does) and tensors on the meta device are
    replaced too; other tensors stay, they become constants of the graph. Whatever `forward` sets on a module while it
    is traced is undone.
    """
    states = [_State.of(module) for module in model.modules()]
    fakes = {id(tensor): fake_like(tensor, mode) for tensor in _registered(model)}
    try:
        for module in model.modules():
            _replace(module, fakes, mode)
        yield
    finally:
        for state in states:
            state.restore()


@dataclass(frozen=True)
class _State:
    """What a module holds: its attributes, and the contents of its registries."""

    module: nn.Module
    attributes: dict[str, Any]
    registries: dict[str, dict[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        attributes = dict(vars(module))
        registries = {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}
        return cls(module, attributes, registries)

    def restore(self) -> None:
        held = vars(self.module)
        held.clear()
        held.update(self.attributes)
        for name, entries in self.registries.items():
            held[name].clear()
            held[name].update(entries)


def _registered(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _replace(module: nn.Module, fakes: Mapping[int, torch.Tensor], mode: FakeTensorMode) -> None:
    held = vars(module)
    registries: list[Any] = [module._parameters, module._buffers]
    for registry in registries:
        for name, tensor in registry.items():
            if tensor is not None:
                registry[name] = fakes[id(tensor)]
    for name, value in list(held.items()):
        if name not in ("_parameters", "_buffers", "_modules"):
            held[name] = _swapped(value, fakes, mode)


def _swapped(value: Any, fakes: Mapping[int, torch.Tensor], mode: FakeTensorMode) -> Any:
    """`value` with the tensors in it replaced; the same object where there are none."""
    if isinstance(value, torch.Tensor):
        if id(value) in fakes:
            return fakes[id(value)]
        return fake_like(value, mode) if value.device.type == "meta" else value
    if type(value) in (list, tuple):
        items = [_swapped(item, fakes, mode) for item in value]
        return type(value)(items) if any(new is not old for new, old in zip(items, value)) else value
    if type(value) is dict:
        entries = {key: _swapped(item, fakes, mode) for key, item in value.items()}
        return entries if any(entries[key] is not value[key] for key in value) else value
    return value
