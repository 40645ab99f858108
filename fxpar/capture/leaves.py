"""Opaque leaves: submodules that stay one node each, since no graph can follow what they do.

While a capture runs, the call of such a submodule becomes one `fxpar_capture::leaf` node, which `restore` turns into a
call of `Leaves`. Sizes and dtypes of its outputs come from a run of a copy of the submodule on drawn numbers. Its
parameters are operands of the node, and its gradients are autograd's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxpar.capture.precision import Float64
from fxpar.capture.tree import plain
from fxpar.capture.trial import Trial
from fxpar.errors import CaptureError
from fxpar.mesh import LeafNumber

_LITERALS = (bool, int, float, complex, str, torch.dtype, type(None))
_library = torch.library.Library("fxpar_capture", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("leaf(Tensor[] tensors, int call) -> Tensor[]")  # type: ignore[no-untyped-call]
_active: list[LeafCalls] = []


@dataclass(eq=False)
class Leaves:
    """Opaque submodules of a model without their tensors, by number; calling it calls one of them with tensors."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    """Where each stands in the model."""
    double: bool = False
    """Whether they are run in float64 throughout, as the model was captured."""

    __name__ = "leaf"

    def __post_init__(self) -> None:
        self.__module__ = "fxpar"

    def __call__(
        self, number: int, tensors: Sequence[torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Call a submodule with its parameters, then its buffers, in the order of their names in it.

        Returns the tensors among the outputs; a single one as it is.
        """
        module = self.modules[number]
        held = dict(zip(names(module), tensors, strict=True))
        with Float64() if self.double else nullcontext():
            result = torch.func.functional_call(module, held, args, kwargs)
        found = [leaf for leaf in pytree.tree_leaves(plain(result)) if isinstance(leaf, torch.Tensor)]
        return found[0] if len(found) == 1 else tuple(found)

    def copied(self) -> Leaves:
        """The same submodules, held by nobody else."""
        return Leaves(
            {number: _bare(module) for number, module in self.modules.items()}, self.paths, self.double
        )


def leaves_of(model: nn.Module, paths: Sequence[str], *, double: bool) -> Leaves:
    """The submodules at some paths, without their tensors; `double` is for those of a model in float64 throughout."""
    modules = {number: _bare(model.get_submodule(path)) for number, path in enumerate(paths)}
    return Leaves(modules, tuple(paths), double)


def names(module: nn.Module) -> list[str]:
    """The names of a module's parameters and buffers, each tensor once."""
    return [*dict(module.named_parameters()), *dict(module.named_buffers())]


def _bare(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers lie on the meta device; hooks of its call stay with the model."""
    tensors = [*module.parameters(), *module.buffers()]
    made = copy.deepcopy(module, {id(tensor): _empty(tensor) for tensor in tensors})
    made._forward_hooks.clear()
    made._forward_pre_hooks.clear()
    return made


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def chosen(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """The paths of the submodules that fit a pattern (`blocks.*.experts`), the outermost ones.

    Raises CaptureError for a pattern that fits none, or the model itself.
    """
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            near = [f"did you mean `{path}`?" for path in get_close_matches(pattern, paths, n=1)]
            raise CaptureError(f"no module of `{type(model).__name__}` is `{pattern}`", details=near)
    found = [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]
    return tuple(path for path in found if not any(path.startswith(f"{outer}.") for outer in found))


@dataclass
class _Call:
    number: int
    args: list[Any]
    """The flat arguments; None where a tensor stands."""
    places: list[int]
    spec: pytree.TreeSpec
    held: int
    """How many of the node's tensors are the submodule's own."""
    outputs: list[torch.Tensor]
    """The tensors that come out, on the meta device."""


@dataclass
class LeafCalls:
    """The opaque leaves of one capture, and their calls in order."""

    leaves: Leaves
    records: list[_Call] = field(default_factory=list)


@contextmanager
def opaque(model: nn.Module, leaves: Leaves) -> Iterator[LeafCalls]:
    """Keep the submodules of `leaves` as one node each while tracing; whoever fakes the model undoes it."""
    calls = LeafCalls(leaves)
    _active.append(calls)
    try:
        for number, path in enumerate(leaves.paths):
            module = model.get_submodule(path)
            module.forward = _Forward(module, number, calls)
        yield calls
    finally:
        _active.pop()


@dataclass(eq=False)
class _Forward:
    module: nn.Module
    number: int
    calls: LeafCalls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path, bare = self.calls.leaves.paths[self.number], self.calls.leaves.modules[self.number]
        leaves, spec = pytree.tree_flatten((args, kwargs))
        _check_arguments(path, args, kwargs, leaves)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        flat = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        mine = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        held = [mine[name] for name in names(bare)]
        given = [leaves[place] for place in places]
        found, out_spec = Trial(
            path, bare, names(bare), held, leaves, spec, self.calls.leaves.double
        ).outputs()
        tensors = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
        self.calls.records.append(_Call(self.number, flat, places, spec, len(held), tensors))
        results = iter(torch.ops.fxpar_capture.leaf([*held, *given], len(self.calls.records) - 1))
        outs = [next(results) if isinstance(leaf, torch.Tensor) else leaf for leaf in found]
        return pytree.tree_unflatten(outs, out_spec)


def _check_arguments(path: str, args: Any, kwargs: Mapping[str, Any], leaves: Sequence[Any]) -> None:
    for value in (*args, *kwargs.values()):
        nested = [value] if not isinstance(value, list | tuple) else value
        if any(isinstance(part, dict) for part in nested):
            raise CaptureError(f"opaque module `{path}` is called with a dict", details=_ADVICE)
    for leaf in leaves:
        if not isinstance(leaf, (*_LITERALS, torch.Tensor)):
            raise CaptureError(
                f"opaque module `{path}` is called with a {type(leaf).__name__}", details=_ADVICE
            )


_ADVICE = (
    "opaque modules take tensors, numbers, strings and lists of them: choose a module inside or around it",
)


def _empties(tensors: list[torch.Tensor], call: int) -> list[torch.Tensor]:
    """The fake implementation: tensors like those that came out of the trial."""
    device = tensors[0].device if tensors else torch.device("cpu")
    return [
        torch.empty(out.shape, dtype=out.dtype, device=device) for out in _active[-1].records[call].outputs
    ]


_library._register_fake("leaf", _empties)  # type: ignore[no-untyped-call]


def restore(node: fx.Node, calls: LeafCalls) -> None:
    """Make a `fxpar_capture::leaf` node call `Leaves`, and its `getitem` users index what that returns."""
    record = calls.records[node.args[1]]  # type: ignore[index]
    tensors: Any = node.args[0]
    leaves = list(record.args)
    for place, tensor in zip(record.places, tensors[record.held :]):
        leaves[place] = tensor
    args, kwargs = pytree.tree_unflatten(leaves, record.spec)
    node.target = calls.leaves
    node.args = (LeafNumber(record.number), list(tensors[: record.held]), *args)
    node.kwargs = kwargs
    values = node.meta["val"]
    if len(record.outputs) != 1:
        node.meta["val"] = tuple(values)
        return
    node.meta["val"] = values[0]
    for user in list(node.users):
        user.replace_all_uses_with(node)
        user.graph.erase_node(user)
