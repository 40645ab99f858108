"""Equations of ops: which dimensions of an op's tensors are one and the same.

    ... i, o i, o? -> ... o                              linear
    b (h g) s d, b h t d, b h t e, ... s t? -> b (h g) s e   attention

Operands stand in the order of the op's tensor arguments. A letter or word is a role; `...` stands for any number of
broadcast dimensions, aligned at the right; `(h g)` is one dimension that is a product; `1` is a dimension of size 1;
`?` after an operand says that it may be absent; `_` is a dimension that the op needs whole, or that it makes. A role
on a dimension of size 1 where other operands are larger is broadcast there. `... when training=false` is an equation
of calls with that argument only: true, false or an integer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

#: The roles of one tensor dimension, major first: one for a plain dimension, none for `1`.
Slot: TypeAlias = tuple[str, ...]

ELLIPSIS: Slot = ("...",)
ANY: Slot = ("_",)

_CONDITION = re.compile(r"\s+when\s+(.*)$", re.S)
_WHEN = re.compile(r"(\w+)=(true|false|-?\d+)\s*")
_WORDS = {"true": True, "false": False}
_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|1|\(|\)|\?)")


@dataclass(frozen=True)
class Operand:
    """One tensor of an equation: its dimensions, and whether it may be absent."""

    slots: tuple[Slot, ...]
    optional: bool = False

    def expand(self, rank: int) -> tuple[Slot, ...]:
        """The slots of a tensor of that rank: `...` becomes `...-1` (last), `...-2` and so on.

        Raises ValueError if no such tensor fits.
        """
        missing = rank - len(self.slots) + (ELLIPSIS in self.slots)
        if missing < 0 or (missing > 0 and ELLIPSIS not in self.slots):
            raise ValueError(f"a tensor of {rank} dimensions does not fit `{self}`")
        out: list[Slot] = []
        for slot in self.slots:
            out.extend([(f"...-{i}",) for i in range(missing, 0, -1)] if slot == ELLIPSIS else [slot])
        return tuple(out)

    def __str__(self) -> str:
        words = [_slot_text(slot) for slot in self.slots]
        return " ".join(words) + ("?" if self.optional else "")


@dataclass(frozen=True)
class Equation:
    """The operands and outputs of an op, dimension by dimension."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    when: tuple[str, bool | int] | None = None
    """The argument, and its value, of the calls that it is an equation of."""

    @property
    def roles(self) -> frozenset[str]:
        """Every role that the equation names."""
        operands = self.inputs + self.outputs
        return frozenset(role for operand in operands for slot in operand.slots for role in slot) - {"_"}

    def __str__(self) -> str:
        left, right = (", ".join(map(str, side)) for side in (self.inputs, self.outputs))
        name, value = self.when or ("", 0)
        word = str(value).lower() if isinstance(value, bool) else value
        return f"{left} -> {right}" + (f" when {name}={word}" if self.when else "")


@cache
def parse(text: str) -> Equation:
    """Read an equation. Raises ValueError that quotes the part which cannot be read."""
    condition = _CONDITION.search(text)
    sides = text[: condition.start() if condition else None].split("->")
    if len(sides) != 2:
        raise ValueError(f"`{text}` must have exactly one `->`")
    inputs, outputs = (tuple(_operand(part) for part in side.split(",")) for side in sides)
    equation = Equation(inputs, outputs, _when(condition[1]) if condition else None)
    known = {role for operand in inputs for slot in operand.slots for role in slot}
    made = {role for operand in outputs for slot in operand.slots for role in slot} - known - {"_"}
    if made:
        raise ValueError(f"`{text}`: output role `{min(made)}` stands in no operand")
    return equation


def _when(text: str) -> tuple[str, bool | int]:
    match = _WHEN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"cannot read `when {text.strip()}`: write `when training=false` or `when reduction=1`"
        )
    name, value = match.groups()
    return name, _WORDS[value] if value in _WORDS else int(value)


def _operand(text: str) -> Operand:
    slots: list[Slot] = []
    group: list[str] | None = None
    optional, position = False, 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None or optional:
            raise ValueError(f"cannot read `{text.strip()}` at `{text[position:].strip()}`")
        token, position = match[1], match.end()
        if token == "(" and group is None:
            group = []
        elif token == ")" and group:
            slots.append(tuple(group))
            group = None
        elif token == "?":
            optional = True
        elif token in "()" or (group is not None and token in ("...", "1")):
            raise ValueError(f"cannot read `{text.strip()}`: `{token}` is out of place")
        elif group is not None:
            group.append(token)
        else:
            slots.append(() if token == "1" else (token,))
    if group is not None or slots.count(ELLIPSIS) > 1:
        raise ValueError(
            f"cannot read `{text.strip()}`: " + ("`(` without `)`" if group is not None else "two `...`")
        )
    return Operand(tuple(slots), optional)


def _slot_text(slot: Slot) -> str:
    if not slot:
        return "1"
    return slot[0] if len(slot) == 1 else f"({' '.join(slot)})"
