"""What safetensors calls each dtype, and how many bits an element of it has."""

from __future__ import annotations

from math import prod

#: Code -> bits of an element. Those of less than 8 bits lie packed, the last byte of a tensor full.
BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def size(code: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises ValueError where its last element ends within a byte."""
    whole, rest = divmod(prod(shape) * BITS[code], 8)
    if rest:
        raise ValueError(f"{code} {list(shape)} ends within a byte")
    return whole
