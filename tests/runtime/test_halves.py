"""A backward run in two halves gives the gradients of a whole one, whatever way parameters come into it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxpar.runtime.halves import backward_input

WIDTH = 4
Forward = Callable[[nn.ParameterDict, Tensor, Tensor], tuple[Tensor, ...]]


def linear(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(F.gelu(F.linear(x, p.a, p.c)), p.b),)


def sum_of_parameters(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """Both get one gradient, as one tensor."""
    return (x + (p.c + p.d),)


def used_twice(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(F.linear(x, p.a).tanh(), p.a) * p.c,)


def bias_of_all_layers(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    """What is made of a parameter joins the path at every layer."""
    bias = F.linear(p.a, p.b).tanh()
    for weight in (p.a, p.b, p.e):
        x = F.linear(x, weight) + bias
    return (x,)


def beside_the_path(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return x * p.c, F.linear(p.a, p.b)


def several_values(p: nn.ParameterDict, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    first, second = F.linear(x, p.a, p.c).chunk(2, dim=-1)
    return first.exp() * y[:, :2] + second, F.linear(x + y, p.b), x * 1


def transposed_and_cast(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (x @ p.a.t() @ p.b.float().double().t().contiguous(),)


def checkpointed(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (checkpoint(lambda h: F.linear(h, p.a).tanh(), x, use_reentrant=False) + p.c,)


def nothing_received_is_used(p: nn.ParameterDict, _x: Tensor, _y: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(p.a, p.b, p.c),)


def frozen(p: nn.ParameterDict, x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return (F.linear(F.linear(x, p.a.detach()), p.b, p.c.detach()),)


def whole(ends: list[Tensor], gradients: list[Tensor], *_: list[Tensor]) -> None:
    torch.autograd.backward(ends, gradients)


def halves(
    ends: list[Tensor], gradients: list[Tensor], received: list[Tensor], parameters: list[nn.Parameter]
) -> None:
    found, half = backward_input(ends, gradients, received, parameters)
    assert all(tensor.grad is None for tensor in received)
    half.run()
    for tensor, gradient in zip(received, found):
        tensor.grad = gradient


@pytest.mark.parametrize(
    "forward",
    [
        linear,
        sum_of_parameters,
        used_twice,
        bias_of_all_layers,
        beside_the_path,
        several_values,
        transposed_and_cast,
        checkpointed,
        nothing_received_is_used,
        frozen,
    ],
)
def test_two_halves_are_a_whole(forward: Forward) -> None:
    found = [_gradients(forward, way) for way in (whole, halves)]
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def _gradients(forward: Forward, way: Callable[..., None]) -> list[Tensor | None]:
    """Those of what is received and of the parameters, over three microbatches."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = {"a": (WIDTH, WIDTH), "b": (WIDTH, WIDTH), "c": (WIDTH,), "d": (WIDTH,), "e": (WIDTH, WIDTH)}
    parameters = nn.ParameterDict({name: nn.Parameter(draw(*size)) for name, size in sizes.items()})
    found: list[Tensor | None] = []
    for _ in range(3):
        received = [draw(WIDTH, WIDTH).requires_grad_() for _ in range(2)]
        ends = list(forward(parameters, *received))
        way(ends, [draw(*end.shape) for end in ends], received, list(parameters.values()))
        found += [tensor.grad for tensor in received]
    return found + [parameter.grad for parameter in parameters.values()]
