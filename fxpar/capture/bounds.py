"""Which sizes a model may be called with: torch's own proof that one graph serves them all.

The model is exported with the sizes of some dims as symbols. What its code asks of them (`x.shape[1] <= 64`) bounds
them; where it needs one as a number (a loop over the positions), the dim cannot be dynamic.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from fxpar.capture.arguments import arguments
from fxpar.capture.export import Traced, trace
from fxpar.capture.failure import deepest, failure, line
from fxpar.capture.guards import Bounds, Guard, chooses_strides, guards
from fxpar.capture.origin import line_of
from fxpar.capture.tree import flatten
from fxpar.clock import Clock
from fxpar.errors import CaptureError

#: An upper bound from here on is none.
NONE = 2**40
#: A dim of an input: its name, and the number of the dim.
Place = tuple[str, int]


@dataclass(frozen=True)
class Proof:
    """What holds in one graph for all sizes: a symbol for each dim, the same for equal ones; None for fixed ones."""

    symbols: Mapping[Place, str | None]
    bounds: Mapping[str, Bounds]
    """By symbol."""
    guards: tuple[Guard, ...] = ()
    """What the model asks of the symbols beside their bounds."""
    outputs: tuple[Any, ...] = ()
    """The model's flat outputs, with symbols in them."""


def prove(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    axes: Mapping[str, Sequence[Place]],
    further: Collection[Place] = (),
) -> Proof:
    """Find the sizes that the input dims of each axis may have; `further` dims are followed too, and may be fixed.

    Raises CaptureError, naming the axis and the line, for an axis whose size the model needs as a number, or from
    which it makes others by more than sums and products.
    """
    try:
        return _proof(model, args, kwargs, axes, further)
    except _Fixed as error:
        wrong = (_refusal(model, args, kwargs, places, axis) for axis, places in axes.items())
        found = next((refusal for refusal in wrong if refusal is not None), None)
        raise found or _cannot(model, list(axes), error) from None


class _Fixed(Exception):
    """The model cannot be exported with these sizes as symbols."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.place = place


@dataclass
class _Watch:
    """What is seen while symbols go through a model."""

    model: nn.Module
    place: str = field(default="")
    """The line of the model at which a symbol became a number first."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note that line, let guards know theirs, and let none be made of what only chooses strides."""
        kept = ShapeEnv._set_replacement, ShapeEnv._get_sloc, ShapeEnv.evaluate_sym_node
        replaced, located, decided = kept

        def replace(env: ShapeEnv, symbol: Any, value: Any, *rest: Any) -> None:
            if not self.place and getattr(value, "is_number", False):
                self.place = deepest(self.model, traceback.extract_stack())
            replaced(env, symbol, value, *rest)

        def locate(env: ShapeEnv, framework_loc: str | None = None) -> Any:
            return located(env, framework_loc or deepest(self.model, traceback.extract_stack()) or None)

        def decide(env: ShapeEnv, *args: Any, **options: Any) -> Any:
            with env.suppress_guards() if chooses_strides() else nullcontext():
                return decided(env, *args, **options)

        ShapeEnv._set_replacement = replace  # type: ignore[method-assign, assignment]
        ShapeEnv._get_sloc = locate  # type: ignore[method-assign, assignment]
        ShapeEnv.evaluate_sym_node = decide  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            ShapeEnv._set_replacement, ShapeEnv._get_sloc, ShapeEnv.evaluate_sym_node = kept  # type: ignore[method-assign]


def _refusal(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], places: Sequence[Place], axis: str
) -> CaptureError | None:
    """What is wrong with one axis alone, if anything."""
    try:
        _proof(model, args, kwargs, {axis: places}, ())
    except _Fixed as error:
        return _cannot(model, [axis], error)
    return None


def _cannot(model: nn.Module, axes: Sequence[str], error: _Fixed) -> CaptureError:
    words = " and ".join(f"`{axis}`" for axis in axes)
    at = f": {error.place}" if error.place else ""
    return CaptureError(
        f"{words} of `{type(model).__name__}` cannot be dynamic{at}",
        details=[str(error), f"leave {words} out of `dynamic`"],
    )


def _proof(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    axes: Mapping[str, Sequence[Place]],
    further: Collection[Place],
) -> Proof:
    given = [leaf for name, value in arguments(model, args, kwargs).items() for leaf in flatten(name, value)]
    names = [name for name, value in given if isinstance(value, torch.Tensor)]
    kinds = dict.fromkeys(further, Dim.AUTO)
    kinds |= {place: Dim.DYNAMIC for places in axes.values() for place in places}
    dynamic = [{dim: kind for (other, dim), kind in kinds.items() if other == name} for name in names]
    watch = _Watch(model)
    try:
        with watch.watched():
            traced = trace(model, args, kwargs, Clock(), dynamic=dynamic)
    except CaptureError:
        raise
    except Exception as error:
        reason = "its size is used as a number" if watch.place else failure(model, error).details[0]
        raise _Fixed(reason, watch.place or line(model, error)) from None
    _check_polynomials(traced)
    return _found(traced, names, kinds)


def _check_polynomials(traced: Traced) -> None:
    """Raise _Fixed for a size that is no sum of products, such as `length // 2` or `min(length, 64)`."""
    for module in traced.exported.graph_module.modules():
        graph: fx.Graph | None = getattr(module, "graph", None)
        for node in graph.nodes if graph is not None else ():
            for size in _sizes(node.meta.get("val")):
                if not size.is_polynomial():
                    at = line_of(node.meta.get("stack_trace"))
                    raise _Fixed("a size there is more than sums and products of others", at)
    for leaf in traced.outputs:
        number = isinstance(leaf, torch.SymInt) and leaf.node.expr.is_polynomial()
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) and not number:
            raise _Fixed(f"an output is more than sums and products of sizes: {leaf}")


def _sizes(value: Any) -> Iterator[Any]:
    """The sizes of the tensors in a value, and the integers in it, as expressions."""
    for leaf in pytree.tree_leaves(value):
        for size in leaf.shape if isinstance(leaf, torch.Tensor) else [leaf]:
            if isinstance(size, torch.SymInt):
                yield size.node.expr


def _found(traced: Traced, names: Sequence[str], places: Collection[Place]) -> Proof:
    inputs = traced.exported.graph_signature.user_inputs
    vals = {node.name: node.meta["val"] for node in traced.exported.graph.nodes if node.op == "placeholder"}
    shapes = {name: vals[given].shape for name, given in zip(names, inputs)}
    sizes = {(name, dim): shapes[name][dim] for name, dim in places}
    expressions = {place: s.node.expr for place, s in sizes.items() if isinstance(s, torch.SymInt)}
    symbols = {place: each for place, each in expressions.items() if not each.is_number}
    ranges = traced.exported.range_constraints
    env = next((s.node.shape_env for s in sizes.values() if isinstance(s, torch.SymInt)), None)
    return Proof(
        {place: str(symbols[place]) if place in symbols else None for place in sizes},
        {str(symbol): _range(ranges[symbol]) for symbol in symbols.values()},
        guards(env) if env is not None else (),
        tuple(traced.outputs),
    )


def _range(found: Any) -> Bounds:
    most = int(found.upper) if found.upper.is_finite and found.upper < NONE else None
    return int(found.lower), most
