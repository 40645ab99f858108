"""What emitted modules are built with: tensors and submodules at the original model's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import nn


class Container(nn.Module):
    """A plain module at one path of the original model; it holds tensors and modules and does nothing.

    Children whose names are numbers are reached as `container[3]`, a range of them as `container[3:5]`: the
    names count, not the positions, so that a later stage says `layers[40:80]` as the whole model does.
    """

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [getattr(self, str(name)) for name in range(index.start, index.stop, index.step or 1)]
        return getattr(self, str(index))

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._modules)

    def __bool__(self) -> bool:
        return True


def parameter(
    root: nn.Module,
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    requires_grad: bool = True,
) -> None:
    """Give `root` an uninitialised parameter at a dotted name, with the containers that it needs."""
    owner, leaf = _owner(root, name)
    empty = torch.empty(tuple(shape), dtype=dtype, device=device)
    owner.register_parameter(leaf, nn.Parameter(empty, requires_grad=requires_grad))


def buffer(
    root: nn.Module,
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str | None = None,
    *,
    persistent: bool = True,
) -> None:
    """Give `root` an uninitialised buffer at a dotted name, with the containers that it needs.

    A buffer that is not `persistent` stands in no checkpoint, as in the original model, but still wants its
    values: `named_buffers` lists it.
    """
    owner, leaf = _owner(root, name)
    owner.register_buffer(leaf, torch.empty(tuple(shape), dtype=dtype, device=device), persistent=persistent)


def submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name of `root`, with the containers that it needs."""
    owner, leaf = _owner(root, name)
    owner.register_module(leaf, module)


def tie(root: nn.Module, name: str, target: str) -> None:
    """Make the tensor `target` of `root` known by a second name. The pair is remembered for `retie`."""
    ties: dict[str, str] = root.__dict__.setdefault("ties", {})
    ties[name] = target
    _bind(root, name, target)


def retie(root: nn.Module) -> None:
    """Make every pair of `tie` one tensor again, after `to_empty` or a loading that assigns has parted them."""
    for name, target in root.__dict__.get("ties", {}).items():
        _bind(root, name, target)


def unite(modules: Sequence[nn.Module]) -> nn.Module:
    """Let several emitted modules hold their tensors in common; return one that has them all, at the same names.

    A name that several of them have is one tensor then. Each keeps its own submodules, which do the work.
    """
    if len(modules) == 1:
        return modules[0]
    whole = Container()
    ties: dict[str, str] = {}
    for module in modules:
        whole._parameters |= {k: v for k, v in module._parameters.items() if k not in whole._parameters}
        whole._buffers |= {k: v for k, v in module._buffers.items() if k not in whole._buffers}
        whole._non_persistent_buffers_set |= module._non_persistent_buffers_set
        ties |= module.__dict__.get("ties", {})
    for module in modules:
        module._parameters, module._buffers = whole._parameters, whole._buffers
        module._non_persistent_buffers_set = whole._non_persistent_buffers_set
    for name in dict.fromkeys(name for module in modules for name in module._modules):
        found = [module._modules[name] for module in modules if name in module._modules]
        whole._modules[name] = unite([module for module in found if module is not None])
    if ties:
        whole.__dict__["ties"] = ties
    return whole


def layers(root: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of an emitted module: what to compile, to checkpoint and to shard as one."""
    return (module for module in root.modules() if module is not root and not isinstance(module, Container))


def compile_layers(root: nn.Module, **options: Any) -> None:
    """Let `torch.compile` compile each layer by itself; layers of one class are compiled once, for all of them.

    `options` are those of torch.compile.
    """
    for layer in layers(root):
        layer.compile(**options)


def _bind(root: nn.Module, name: str, target: str) -> None:
    """Let `name` hold the tensor object that `target` holds."""
    source, source_leaf = _owner(root, target)
    owner, leaf = _owner(root, name)
    if source_leaf in source._parameters:
        owner._parameters[leaf] = source._parameters[source_leaf]
    else:
        persistent = source_leaf not in source._non_persistent_buffers_set
        owner.register_buffer(leaf, source._buffers[source_leaf], persistent=persistent)


def _owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a dotted name and the name's last part; containers are made on the way."""
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules.get(part)
        if child is None:
            child = Container()
            root.register_module(part, child)
        root = child
    return root, leaf
