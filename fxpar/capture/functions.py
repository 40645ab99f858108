"""`torch.autograd.Function` as one node of the graph, so that its own gradient is not lost.

Tracing sees through a Function's forward and forgets its backward. While a capture runs, `Function.apply` is
replaced: the call becomes one `fxpar_capture::function` node, which `restore` turns into a `FunctionCall` afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxpar.errors import CaptureError

_LITERALS = (bool, int, float, complex, str, torch.dtype, torch.device, torch.Size, type(None))
_library = torch.library.Library("fxpar_capture", "DEF")  # type: ignore[no-untyped-call]
_library.define("function(Tensor[] tensors, int call) -> Tensor[]")  # type: ignore[no-untyped-call]
_active: list[Calls] = []


@dataclass(frozen=True)
class FunctionCall:
    """The target of a node that calls `function.apply`, gradient included; equal for equal Functions."""

    function: type[torch.autograd.Function]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    @property
    def path(self) -> str:
        """`package.module:Class`, where to import the Function from."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)  # type: ignore[no-untyped-call]


@dataclass
class Calls:
    """The Functions applied during one capture, in the order of their calls."""

    records: list[_Record] = field(default_factory=list)
    original: Any = None


@dataclass
class _Record:
    function: type[torch.autograd.Function]
    literals: list[Any]
    """The flat arguments; None where a tensor stands."""
    places: list[int]
    """The positions of the tensors among the flat arguments."""
    spec: pytree.TreeSpec
    single: bool = False
    outputs: list[Any] = field(default_factory=list)
    """The flat outputs: the index among the tensors of the output, or a literal."""

    def arguments(self, tensors: Sequence[Any]) -> list[Any]:
        leaves = list(self.literals)
        for place, tensor in zip(self.places, tensors):
            leaves[place] = tensor
        return list(pytree.tree_unflatten(leaves, self.spec))


@contextmanager
def kept() -> Iterator[Calls]:
    """Keep every Function that is applied while tracing as one node."""
    calls = Calls()
    patched = torch.autograd.Function.__dict__["apply"]
    calls.original = patched.__func__
    _active.append(calls)
    torch.autograd.Function.apply = classmethod(_apply)  # type: ignore[assignment]
    try:
        yield calls
    finally:
        torch.autograd.Function.apply = patched  # type: ignore[method-assign]
        _active.pop()


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    calls = _active[-1]
    if get_proxy_mode() is None or cls.__module__.startswith(("torch._", "torch.export", "torch.fx")):
        return calls.original(cls, *args, **kwargs)
    if kwargs:
        raise CaptureError(f"autograd.Function `{cls.__name__}` is called with keywords", details=_ADVICE)
    record = _record(cls, args)
    tensors = [pytree.tree_leaves(args)[place] for place in record.places]
    calls.records.append(record)
    results = torch.ops.fxpar_capture.function(tensors, len(calls.records) - 1)
    outputs = [results[leaf.index] if isinstance(leaf, _Slot) else leaf for leaf in record.outputs]
    return outputs[0] if record.single else tuple(outputs)


_ADVICE = (
    "its own gradient cannot be kept in the graph",
    "switch off what uses it (gradient checkpointing, a fused kernel), or call it with tensors and numbers only",
)


@dataclass(frozen=True)
class _Slot:
    index: int


def _record(cls: Any, args: tuple[Any, ...]) -> _Record:
    leaves, spec = pytree.tree_flatten(list(args))
    for leaf in leaves:
        if not isinstance(leaf, (*_LITERALS, torch.Tensor)):
            what = f"autograd.Function `{cls.__name__}` is called with a {type(leaf).__name__}"
            raise CaptureError(what, details=_ADVICE)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    literals = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return _Record(cls, literals, places, spec)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an op draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.any |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _shapes(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    """The fake implementation: run the Function's forward on fakes, note what it returns."""
    calls = _active[-1]
    record = calls.records[call]
    versions = [tensor._version for tensor in tensors]
    with torch.no_grad(), _Draws() as draws:
        result = calls.original(record.function, *record.arguments(tensors))
    if draws.any:
        raise CaptureError(
            f"autograd.Function `{record.function.__name__}` draws random numbers",
            details=[
                "no seed would reach it: draw them outside and give them to it, or switch off what uses it"
            ],
        )
    if versions != [tensor._version for tensor in tensors]:
        raise CaptureError(
            f"autograd.Function `{record.function.__name__}` changes its inputs", details=_ADVICE
        )
    record.single = not isinstance(result, tuple)
    outputs = [result] if record.single else list(result)
    found = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
    slots = iter(range(len(found)))
    record.outputs = [_Slot(next(slots)) if isinstance(leaf, torch.Tensor) else leaf for leaf in outputs]
    return [torch.empty_like(tensor) for tensor in found]


_library._register_fake("function", _shapes)  # type: ignore[no-untyped-call]


def restore(node: fx.Node, calls: Calls) -> None:
    """Make a `fxpar_capture::function` node call its Function, and its `getitem` users index what that returns."""
    record = calls.records[node.args[1]]  # type: ignore[index]
    tensors: Any = node.args[0]
    node.target = FunctionCall(record.function)
    node.args = tuple(record.arguments(tensors))
    positions = {leaf.index: at for at, leaf in enumerate(record.outputs) if isinstance(leaf, _Slot)}
    values = node.meta["val"]
    if record.single:
        node.meta["val"] = values[0]
    else:
        node.meta["val"] = tuple(
            values[leaf.index] if isinstance(leaf, _Slot) else leaf for leaf in record.outputs
        )
    for user in list(node.users):
        if record.single:
            user.replace_all_uses_with(node)
            user.graph.erase_node(user)
        else:
            user.args = (node, positions[user.args[1]])  # type: ignore[index]
