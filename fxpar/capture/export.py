"""Trace a model with `torch.export`, quietly, as one flat call over its tensor inputs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture.arguments import arguments
from fxpar.capture.fake import fake_like, fake_mode, faked
from fxpar.capture.functions import Calls, kept
from fxpar.capture.hooks import check_hooks, no_gradient_calls
from fxpar.capture.leaves import LeafCalls, chosen, leaves_of, opaque
from fxpar.capture.precision import active
from fxpar.capture.tree import flatten, leaf_names, plain
from fxpar.clock import Clock
from fxpar.errors import CaptureError

#: The name of the model inside the module that is exported.
ROOT = "root"
_LITERALS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
#: What an output may be.
_KNOWN = (*_LITERALS, torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass
class Traced:
    """What tracing gave: torch's exported program, and how inputs and outputs map to its flat ones."""

    exported: torch.export.ExportedProgram
    inputs: list[tuple[str, Any]]
    """Name and value of every leaf of the arguments; the tensors among them are the flat inputs, in order."""
    outputs: list[Any]
    """The flat outputs of the model; the tensors among them are the flat outputs of the graph, in order."""
    out_spec: pytree.TreeSpec
    calls: Calls
    leaf_calls: LeafCalls
    omitted: dict[str, str]
    """Outputs of which nothing is known, by name, with their class; None stands for them."""

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(name or "0" for name in leaf_names(self.out_spec))


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    clock: Clock,
    patterns: Sequence[str] = (),
    dynamic: Sequence[Mapping[int, Any]] | None = None,
) -> Traced:
    """Export the model on fake tensors, training graph, not decomposed; modules that fit `patterns` stay one node.

    `dynamic` says, for each tensor among the inputs, what torch.export is to take each dim for that is not fixed.
    Raises CaptureError where arguments do not fit `forward`, or are no tensors, numbers or strings; what goes wrong
    inside the model is raised as it is.
    """
    names = _leaves(model, arguments(model, args, kwargs))
    check_hooks(model)
    mode = fake_mode(symbols=dynamic is not None)
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    flat = [fake_like(leaf.detach(), mode) for leaf in leaves if isinstance(leaf, torch.Tensor)]
    shell = _Shell(model, leaves, spec)
    shapes = {"flat": tuple(dynamic)} if dynamic is not None else None
    whole = leaves_of(model, chosen(model, patterns), double=active())
    with (
        _untouched(),
        _quiet(),
        faked(model, mode),
        kept() as calls,
        opaque(model, whole) as leaf_calls,
        no_gradient_calls(model),
        clock.measure("export"),
    ):
        exported = torch.export.export(shell, tuple(flat), strict=False, dynamic_shapes=shapes)
    found = zip(leaf_names(shell.out_spec), shell.outputs)
    omitted = {name or "0": type(leaf).__name__ for name, leaf in found if not isinstance(leaf, _KNOWN)}
    outputs = [leaf if isinstance(leaf, _KNOWN) else None for leaf in shell.outputs]
    return Traced(exported, names, outputs, shell.out_spec, calls, leaf_calls, omitted)


def _leaves(model: nn.Module, given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name and value of every leaf of the arguments, in the order in which they are given."""
    leaves = [leaf for name, value in given.items() for leaf in flatten(name, value)]
    for name, value in leaves:
        if not isinstance(value, (*_LITERALS, torch.Tensor)):
            what = f"input `{name}` of `{type(model).__name__}` is a {type(value).__name__}"
            raise CaptureError(
                what, details=["inputs are tensors, numbers, strings, or lists and dicts of them"]
            )
    return leaves


class _Shell(nn.Module):
    """Calls the model with its nested arguments, from flat tensors to flat tensors."""

    def __init__(self, model: nn.Module, leaves: Sequence[Any], spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.train(model.training)
        setattr(self, ROOT, model)
        self.leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self.spec = spec
        self.found = _Found()

    def forward(self, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, flat):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        result = getattr(self, ROOT)(*args, **kwargs)
        self.found.leaves, self.found.spec = pytree.tree_flatten(plain(result))
        return tuple(leaf for leaf in self.found.leaves if isinstance(leaf, torch.Tensor))

    @property
    def outputs(self) -> list[Any]:
        return self.found.leaves

    @property
    def out_spec(self) -> pytree.TreeSpec:
        assert self.found.spec is not None
        return self.found.spec


@dataclass
class _Found:
    """The outputs of the latest call; no attribute of the module, since export watches those."""

    leaves: list[Any] = field(default_factory=list)
    spec: pytree.TreeSpec | None = None


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """Trace with gradients, and put back what tracing may leave changed, also when it fails."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _plain_inference_mode(), _detached_data():
        yield


@contextlib.contextmanager
def _plain_inference_mode() -> Iterator[None]:
    """Let `torch.inference_mode` be traced as `no_grad`: export would drop it, and gradients would flow."""
    kind = torch.inference_mode
    enter, leave = kind.__enter__, kind.__exit__

    def start(self: Any) -> None:
        self.replaced = torch.autograd.grad_mode.set_grad_enabled(not self.mode and torch.is_grad_enabled())
        self.replaced.__enter__()

    def stop(self: Any, *error: Any) -> None:
        self.replaced.__exit__(*error)

    kind.__enter__, kind.__exit__ = start, stop  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave  # type: ignore[method-assign]


@contextlib.contextmanager
def _detached_data() -> Iterator[None]:
    """Let `x.data` be traced as `x.detach()`: tracing does not see the attribute."""
    base = torch._C.TensorBase.data

    def read(self: torch.Tensor) -> torch.Tensor:
        tracing = torch.fx.experimental.proxy_tensor.get_proxy_mode() is not None
        return self.detach() if tracing else base.__get__(self)  # type: ignore[attr-defined]

    def write(self: torch.Tensor, value: torch.Tensor) -> None:
        base.__set__(self, value)  # type: ignore[attr-defined]

    torch.Tensor.data = property(read, write)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch.Tensor.data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints, logs and warns of while it traces away from the user."""
    logger = logging.getLogger("torch")
    level = logger.level
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.|contextlib")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)
