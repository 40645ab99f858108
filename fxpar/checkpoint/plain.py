"""Plain values as JSON that gives the same values back: what state dicts have besides tensors.

(0.9, 0.999)      {"!tuple": [0.9, 0.999]}
inf               {"!float": "inf"}
{30: 2}           {"!dict": [[30, 2]]}
tensor(0.001)     {"!tensor": ["float32", [], 0.0010000000474974513]}
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from fxpar.errors import CheckpointError

_MARK = "!"
#: The most dims of a tensor in torch.
_RANK = 64


def encoded(value: Any, where: str, problems: list[str]) -> Any:
    """A value as JSON. What JSON cannot hold exactly is added to `problems`, by its place `where`."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"!float": repr(float(value))}
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return {"!tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), _number(value)]}
    if type(value) in (list, tuple):
        items = [encoded(each, f"{where}[{number}]", problems) for number, each in enumerate(value)]
        return items if isinstance(value, list) else {"!tuple": items}
    if type(value) in (dict, Counter, OrderedDict):
        return _mapping(value, where, problems)
    shape = f" {list(value.shape)}" if isinstance(value, torch.Tensor) else ""
    problems.append(f"{where} is a {type(value).__name__}{shape}")
    return None


def _number(value: torch.Tensor) -> Any:
    number = value.item()
    return (
        repr(number) if isinstance(number, complex) or number != number or abs(number) == math.inf else number
    )


def _mapping(value: dict[Any, Any], where: str, problems: list[str]) -> Any:
    items = [
        [encoded(key, f"a key of {where}", problems), encoded(each, f"{where}[{key!r}]", problems)]
        for key, each in value.items()
    ]
    plain = all(isinstance(key, str) and not key.startswith(_MARK) for key in value)
    if type(value) is dict and plain:
        return dict(items)
    return {f"!{type(value).__name__}": items}


def decoded(data: Any) -> Any:
    """What `encoded` was given. Raises CheckpointError for anything that it does not give."""
    if isinstance(data, list):
        return [decoded(each) for each in data]
    if not isinstance(data, dict):
        return data
    marks = [key for key in data if key.startswith(_MARK)]
    if not marks:
        return {key: decoded(each) for key, each in data.items()}
    if len(data) > 1 or marks[0] not in _KINDS:
        raise CheckpointError(f"`{marks[0]}` is no kind of value")
    try:
        return _KINDS[marks[0]](data[marks[0]])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{data!r} is no value: {error}") from error


def _tensor(data: Any) -> torch.Tensor:
    name, shape, number = data
    if not isinstance(shape, list) or len(shape) > _RANK or any(size != 1 for size in shape):
        raise ValueError(f"it has the shape {shape!r:.80}, and is one number")
    dtype = getattr(torch, name)
    value = (complex(number) if dtype.is_complex else float(number)) if isinstance(number, str) else number
    return torch.full(shape, value, dtype=dtype)


def _pairs(data: Any) -> list[tuple[Any, Any]]:
    return [(decoded(key), decoded(value)) for key, value in data]


_KINDS: dict[str, Callable[[Any], Any]] = {
    "!float": float,
    "!tuple": lambda data: tuple(decoded(data)),
    "!tensor": _tensor,
    "!dict": lambda data: dict(_pairs(data)),
    "!Counter": lambda data: Counter(dict(_pairs(data))),
    "!OrderedDict": lambda data: OrderedDict(_pairs(data)),
}
