"""Sizes that differ from call to call: integers that know how they follow from the sizes of the dynamic axes.

    Size(32, "batch * sequence // 8")     32 where batch is 4 and sequence 64

Each stands for a polynomial in the sizes of the axes, with rational coefficients. No torch here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import lcm, prod
from typing import TypeAlias

#: A product of powers of axes, `(("batch", 1), ("sequence", 2))`, by name; the empty one is 1.
Monomial: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Polynomial:
    """A sum of products of axes, each with a coefficient that is not zero."""

    terms: Mapping[Monomial, Fraction]

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    @classmethod
    def of(cls, value: int | str) -> Polynomial:
        """A number, or the size of an axis."""
        if isinstance(value, str):
            return cls({((value, 1),): Fraction(1)})
        return cls({(): Fraction(value)} if value else {})

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that it depends on, by name."""
        return tuple(sorted({axis for monomial in self.terms for axis, _ in monomial}))

    @property
    def denominator(self) -> int:
        """What all coefficients together are divided by."""
        return lcm(*(coefficient.denominator for coefficient in self.terms.values()))

    def at(self, sizes: Mapping[str, int]) -> Fraction:
        """The value where the axes have these sizes."""
        values = (c * prod(sizes[axis] ** power for axis, power in m) for m, c in self.terms.items())
        return sum(values, Fraction(0))

    def rescaled(self, scales: Mapping[str, tuple[str, Fraction]]) -> Polynomial:
        """The same in other variables: `{"sequence": ("length", 1/2)}` says that `length` is half of `sequence`."""
        total = Polynomial({})
        for monomial, coefficient in self.terms.items():
            factor, powers = coefficient, []
            for axis, power in monomial:
                name, scale = scales[axis]
                factor /= scale**power
                powers.append((name, power))
            total = total + Polynomial({tuple(sorted(powers)): factor})
        return total

    def __add__(self, other: Polynomial) -> Polynomial:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms.items():
            terms[monomial] = terms.get(monomial, Fraction(0)) + coefficient
        return Polynomial({monomial: c for monomial, c in terms.items() if c})

    def __mul__(self, other: Polynomial) -> Polynomial:
        total = Polynomial({})
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                total = total + Polynomial({_product(left, right): a * b})
        return total

    def __str__(self) -> str:
        """As a Python expression: `2 * batch * sequence // 8`, `sequence - 1`."""
        whole = self.denominator
        order = sorted(self.terms, key=lambda m: (-sum(power for _, power in m), m))
        words = list(_signed({monomial: int(self.terms[monomial] * whole) for monomial in order}))
        text = " ".join(words) or "0"
        if whole == 1:
            return text
        return f"({text}) // {whole}" if len(words) > 1 else f"{text} // {whole}"


def _product(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for axis, power in right:
        powers[axis] = powers.get(axis, 0) + power
    return tuple(sorted(powers.items()))


def _signed(coefficients: Mapping[Monomial, int]) -> Iterator[str]:
    """The summands as words: `-2 * batch`, `+ 1`."""
    for position, (monomial, coefficient) in enumerate(coefficients.items()):
        factors = [axis for axis, power in monomial for _ in range(power)]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+" if position else ""
        yield f"{sign}{' ' if position else ''}{' * '.join(factors)}"


class Size(int):
    """An integer of one example and the polynomial that gives it for all sizes."""

    polynomial: Polynomial

    def __new__(cls, value: int, polynomial: Polynomial | str) -> Size:
        """Make a size; a text is read as `parse` does."""
        made = super().__new__(cls, value)
        made.polynomial = parse(polynomial) if isinstance(polynomial, str) else polynomial
        return made

    def __getnewargs__(self) -> tuple[int, Polynomial]:  # type: ignore[override]
        return int(self), self.polynomial

    def at(self, sizes: Mapping[str, int]) -> int:
        """The size where the axes have these sizes, of which it is a whole number."""
        return int(self.polynomial.at(sizes))


@cache
def parse(text: str) -> Polynomial:
    """Read what `str` of a polynomial writes. Raises ValueError for anything else."""
    try:
        return _read(ast.parse(text, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"`{text}` is no size") from error


def _read(node: ast.expr) -> Polynomial:
    match node:
        case ast.Constant(value=int(value)):
            return Polynomial.of(value)
        case ast.Name(id=name):
            return Polynomial.of(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _read(operand) * Polynomial.of(-1)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read(left) + _read(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _read(left) + _read(right) * Polynomial.of(-1)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _read(left) * _read(right)
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=ast.Constant(value=int(divisor))) if divisor:
            return _read(left) * Polynomial({(): Fraction(1, divisor)})
    raise ValueError(f"`{ast.unparse(node)}` is no size")
