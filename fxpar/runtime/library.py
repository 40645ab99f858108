"""How the operators of this package are registered with torch.

Each is one torch.library operator, implemented below autograd by other operators, with its gradient, its shape
function and, where it is a collective, a decomposition by which torch.compile's inductor sees the collective itself.
This is what survives export, fx, compilation and activation checkpointing; an autograd.Function does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch.utils._python_dispatch import _disable_current_modes

NAMESPACE = "fxpar"

Operator = Callable[..., Any]

_library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_decompositions: dict[Any, Operator] = {}


def define(
    schema: str,
    forward: Operator,
    fake: Operator,
    gradient: Operator | None = None,
    *,
    decompose: bool = False,
) -> Operator:
    """Register an operator and return it.

    `schema` is torch's (`name(Tensor x, str group) -> Tensor`), `forward` computes it on real tensors and `fake`
    makes an empty tensor of the result's shape. `gradient(grad, *arguments)` gives the gradient of the first
    argument, from that of the result and the other arguments; without it, none flows. With `decompose`, inductor
    replaces the operator by what `forward` does.
    """
    name = schema.split("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _library.impl(name, forward, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    if decompose:
        _decompositions[operator] = forward
    torch.library.register_fake(qualified, _with_decompositions(fake), lib=_library)
    if gradient is not None:
        _register_gradient(qualified, gradient)
    return cast(Operator, operator)


def define_composite(schema: str, forward: Operator) -> Operator:
    """Register an operator that is a mere name for others: tracing and autograd see those that `forward` calls."""
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _library.impl(name, forward, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
    return cast(Operator, getattr(getattr(torch.ops, NAMESPACE), name).default)


def register_autograd(operator: Operator, backward: Operator, setup: Operator) -> None:
    """Give an operator a gradient that needs saved tensors; see torch.library.register_autograd."""
    name = cast(Any, operator)._schema.name
    torch.library.register_autograd(name, backward, setup_context=setup, lib=_library)


def _register_gradient(qualified: str, gradient: Operator) -> None:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001 - torch's signature
        ctx.arguments = inputs[1:]

    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return (gradient(grad, *ctx.arguments), *(None for _ in ctx.arguments))

    torch.library.register_autograd(qualified, backward, setup_context=setup, lib=_library)


def _with_decompositions(fake: Operator) -> Operator:
    """A shape function that also makes inductor aware of this package, as soon as something is compiled.

    Inductor takes over a second to import, so that it is not done before.
    """

    def shape(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            _tell_inductor()
        return fake(*arguments)

    return shape


@cache
def _tell_inductor() -> None:
    with _disable_current_modes():
        from torch._inductor import decomposition

        for operator, forward in _decompositions.items():
            decomposition.register_decomposition([operator])(forward)
