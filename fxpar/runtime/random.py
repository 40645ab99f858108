"""Random operations whose numbers follow the placement: equal where a value is the same, different where it is split.

Each random operation of a forward call draws from its own stream. The stream is determined by the seed of the call, the
number of the operation in the graph and this rank's coordinates on those mesh dims over which the value is split. So
activation checkpointing, which computes an operation again with the same arguments, draws the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxpar.runtime.layout import ensure
from fxpar.runtime.library import define

T = TypeVar("T")
ATTENTION: Any = torch.ops.aten.scaled_dot_product_attention.default


def dropout(
    x: Tensor, p: float, training: bool, seed: int, op: int, coordinates: Sequence[int] = ()
) -> Tensor:
    """Zero each element with probability p and scale the others by 1/(1 - p); a copy of x if not training.

    seed: of this forward call. op: the number of this operation. coordinates: this rank's, on the mesh dims over
    which x is split. The mask is not kept but drawn again in backward. Srivastava et al. 2014.
    """
    result: Tensor = _dropout(x, p, training, seed, op, list(coordinates))
    return result


@contextmanager
def seeded(
    seed: int, op: int, coordinates: Sequence[int] = (), device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Let torch's own random operations inside (rand_like, bernoulli, attention with dropout) draw from this stream.

    The arguments are those of `dropout`; device is where the operation runs. The state of torch's default generators is
    as before afterwards.
    """
    stream, place = stream_seed(seed, op, coordinates), torch.device(device)
    host = torch.get_rng_state()
    module = torch.get_device_module(place) if place.type not in ("cpu", "meta") else None
    state = module.get_rng_state(place) if module is not None else None
    torch.default_generator.manual_seed(stream)
    if module is not None:
        module.manual_seed(stream)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if module is not None:
            module.set_rng_state(state, place)


def seeded_call(
    function: Callable[..., T],
    seed: int,
    op: int,
    coordinates: Sequence[int],
    *arguments: Any,
    **options: Any,
) -> T:
    """Call a function that draws random numbers inside of `seeded`, on the device of its first tensor argument.

    Its tensors are made contiguous: torch draws in the order of memory, which may differ where values do not. Attention
    draws for its weights alone, which are its own.
    """
    tensors = (a for a in [*arguments, *options.values()] if isinstance(a, Tensor))
    device = next((tensor.device for tensor in tensors), torch.device(options.get("device") or "cpu"))
    if function is not ATTENTION:
        arguments, options = pytree.tree_map_only(Tensor, Tensor.contiguous, (arguments, options))
    with seeded(seed, op, coordinates, device):
        return function(*arguments, **options)


def stream_seed(*parts: int | Sequence[int]) -> int:
    """A seed of 63 bits from numbers and tuples of numbers, the same in every process."""
    text = ";".join(repr(part if isinstance(part, int) else tuple(part)) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Randomness:
    """The seeds of successive forward calls, the same on all ranks that start from the same base seed.

    >>> randomness = Randomness(1234)
    >>> randomness.next() == Randomness(1234).next()
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0

    def next(self) -> int:
        """The seed for one forward call."""
        seed = stream_seed(self.seed, self.step)
        self.step += 1
        return seed

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.seed, self.step = state["seed"], state["step"]


def _drop(x: Tensor, p: float, training: bool, seed: int, op: int, coordinates: list[int]) -> Tensor:
    ensure(0 <= p <= 1, lambda: f"a probability lies between 0 and 1, p = {p} does not")
    if not training or p == 0:
        return x.clone(memory_format=torch.contiguous_format)
    if p == 1:
        return x.new_zeros(x.shape)
    generator = torch.Generator(x.device).manual_seed(stream_seed(seed, op, coordinates))
    kept = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p, generator=generator)
    return (x / (1 - p)).where(kept, 0).contiguous()


def _same_shape(x: Tensor, p: float, *_: Any) -> Tensor:
    ensure(0 <= p <= 1, lambda: f"a probability lies between 0 and 1, p = {p} does not")
    return x.new_empty(x.shape)


_dropout = define(
    "dropout(Tensor x, float p, bool training, SymInt seed, int op, int[] coordinates) -> Tensor",
    _drop,
    _same_shape,
    dropout,
)
