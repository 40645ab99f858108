"""Is a captured graph that draws random numbers the model? Both are run with the same state of torch's generators.

model   manual_seed(s), forward      the graph draws by the same ops in the same order,
graph   manual_seed(s), forward      so that both have the same masks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxpar.capture import interpret
from fxpar.capture.arguments import arguments
from fxpar.capture.failure import does_not_run
from fxpar.capture.program import Program
from fxpar.capture.tree import plain
from fxpar.errors import ModelError

T = TypeVar("T")

#: The attributes in which a module of torch registers what it has.
_REGISTERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def check_captured(
    model: nn.Module,
    held: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    program: Program,
    tolerance: float,
) -> None:
    """Raise ModelError where outputs of the model and of its graph differ by more than the tolerance, relative.

    `held` has all parameters and buffers; they and torch's generators are left as they are.
    """
    place = next(iter(held.values())).device if held else torch.device("cpu")
    with torch.no_grad():
        whole = _seeded(place, lambda: outputs(model, _copies(held), args, kwargs))
        given = arguments(model, args, kwargs)
        graph = _seeded(place, lambda: interpret.run(program, given, _copies(held)))
    for name, first, second in zip(program.output_names, whole, graph):
        if isinstance(first, Tensor) and not _close(first, second, tolerance):
            raise ModelError(
                f"the captured graph of `{type(model).__name__}` does not draw the random numbers of the model",
                details=[
                    f"output `{name}` differs when both start from the same seed of torch's",
                    "verify the model in eval mode (model.eval(), --eval)",
                ],
            )


def outputs(
    model: nn.Module, held: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The flat outputs of a model with other tensors. Raises ModelError where it does not run."""
    with _as_it_was(model):
        try:
            made = torch.func.functional_call(model, dict(held), tuple(args), dict(kwargs))
        except Exception as error:
            raise does_not_run(model, error) from error
    return pytree.tree_leaves(plain(made))


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Take away again what a model keeps of a run: buffers and attributes, such as a table made on first use."""
    before = [(vars(module), _attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes; where torch keeps its tensors is copied."""
    return {name: value.copy() if name in _REGISTERS else value for name, value in vars(module).items()}


def _copies(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in held.items()}


def _seeded(place: torch.device, run: Callable[[], T]) -> T:
    """Run something from a fixed state of torch's generators, which are left as they are."""
    host = place.type == "cpu"
    with torch.random.fork_rng(devices=[] if host else [place], device_type="cuda" if host else place.type):
        torch.manual_seed(0)
        return run()


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether the largest difference is small beside the largest value; values that are not finite are the same."""
    first, second = first.to(torch.float64), second.to(torch.float64)
    difference = (first - second).abs().where(first != second, 0).nan_to_num(torch.inf)
    largest = first.abs().where(first.isfinite(), 0)
    return first.numel() == 0 or bool(difference.max() <= tolerance * largest.max())
