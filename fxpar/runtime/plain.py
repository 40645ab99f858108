"""Plain values of inputs and outputs as JSON: numbers, strings and None as they are, other kinds under their name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxpar.size import Size, parse


def to_json(value: Any) -> Any:
    """A size, dtype, device or complex number as a dict of one entry; JSON's own kinds as they are."""
    if isinstance(value, Size):
        return {"size": str(value.polynomial)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return value


def from_json(data: Any, example: Mapping[str, int]) -> Any:
    """What `to_json` wrote; sizes are those of the example."""
    match data:
        case {"size": text}:
            return Size(int(parse(text).at(example)), text)
        case {"dtype": name}:
            return getattr(torch, name)
        case {"device": name}:
            return torch.device(name)
        case {"complex": [real, imaginary]}:
            return complex(real, imaginary)
    return data
