"""Example inputs: `input_ids:int64[2,128]<32000` in a word, the same values at each call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch

from fxpar.errors import ModelError

GRAMMAR = "NAME:DTYPE[SIZE,SIZE,...] and, for integers, <HIGH; as in input_ids:int64[2,128]<32000"
_INPUT = re.compile(
    r"(?P<name>[^:\[\]<>]*):(?P<dtype>[^:\[\]<>]*)\[(?P<sizes>[^\]]*)\](?:<(?P<high>.*))?", re.ASCII
)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
#: Integers are drawn below this if nothing else is said.
HIGH = 2


@dataclass(frozen=True)
class Example:
    """Inputs of one call of a model: `forward(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputSpec:
    """One input in words; `high` is the exclusive bound of integers."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    high: int = HIGH

    def tensor(self, seed: int = 0) -> torch.Tensor:
        """Values that depend on the seed and the name alone: normal, or uniform integers in [0, high)."""
        generator = torch.Generator().manual_seed((crc32(self.name.encode()) << 16) + seed)
        if self.dtype.is_floating_point:
            return torch.randn(self.sizes, generator=generator, dtype=torch.float64).to(self.dtype)
        return torch.randint(0, self.high, self.sizes, generator=generator).to(self.dtype)


def parse_input(text: str) -> InputSpec:
    """Parse one input, such as `input_ids:int64[2,128]<32000`. Raises ModelError that says what is wrong where."""
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise _malformed(text, "it is not of the form")
    name, dtype = match["name"].strip(), match["dtype"].strip()
    if not name:
        raise _malformed(text, "the name is missing")
    if dtype not in DTYPES:
        raise _malformed(text, f"`{dtype}` is no dtype; it may be {', '.join(DTYPES)}")
    sizes = tuple(_number(text, part, "size") for part in match["sizes"].split(",") if match["sizes"].strip())
    return InputSpec(name, DTYPES[dtype], sizes, _bound(text, match["high"], DTYPES[dtype]))


def from_texts(texts: Iterable[str], seed: int = 0) -> Example:
    """The example that several `--input` texts describe, by name. Raises ModelError where a name comes twice."""
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        spec = parse_input(text)
        if spec.name in kwargs:
            raise _malformed(text, f"`{spec.name}` is given twice")
        kwargs[spec.name] = spec.tensor(seed)
    return Example(kwargs=kwargs)


def from_value(value: Any, origin: str) -> Example:
    """The example in an `example_inputs`: a dict, a tuple, a tensor, or a function that returns one."""
    if callable(value) and not isinstance(value, torch.Tensor):
        value = value()
    if isinstance(value, Example):
        return value
    if isinstance(value, Mapping):
        return Example(kwargs=dict(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Example(args=tuple(value))
    if isinstance(value, torch.Tensor):
        return Example(args=(value,))
    raise ModelError(
        f"{origin}: `example_inputs` is a {type(value).__name__}",
        details=[
            "it may be a dict (keywords), a tuple (positions), a tensor, or a function that returns one"
        ],
    )


def _bound(text: str, high: str | None, dtype: torch.dtype) -> int:
    if high is None:
        return HIGH
    if dtype.is_floating_point or dtype == torch.bool:
        raise _malformed(text, "`<HIGH` is for integers only")
    bound = _number(text, high, "bound")
    if bound == 0:
        raise _malformed(text, "the bound has to be at least 1")
    return bound


def _number(text: str, part: str, what: str) -> int:
    if not part.strip().isdecimal():
        raise _malformed(text, f"`{part.strip()}` is no {what}")
    return int(part)


def _malformed(text: str, why: str) -> ModelError:
    return ModelError(f"input `{text}`: {why}", details=[GRAMMAR])
