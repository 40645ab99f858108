"""From the values of an integer at several sizes to the polynomial that gives it at all of them.

The sizes are unlike each other (see `choice.py`), and a size in a program is a sum of few products of axes, divided by
numbers of ranks. So the simplest polynomial of this kind that gives every value is the one behind them; if there
are two, neither is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product
from math import prod

from fxpar.size import Monomial, Polynomial, Size

#: The largest power of one axis, and of all together, that is looked for.
POWER, DEGREE = 2, 3


class Fit:
    """Fits polynomials at some points: the size of every axis, first in the example, then elsewhere.

    `parts` is the number of ranks times that of microbatches: coefficients have no other prime factors below.
    """

    def __init__(self, points: Sequence[Mapping[str, int]], parts: int) -> None:
        self.points = list(points)
        self._parts = parts**DEGREE
        self._monomials = list(monomials(list(points[0])))
        self._known: dict[tuple[int, ...], Size | None] = {}

    def size(self, values: Sequence[int]) -> Size | None:
        """The size with these values at the points, which are not all the same; None where nothing fits."""
        key = tuple(values)
        if key not in self._known:
            found = self._find([Fraction(value) for value in values])
            self._known[key] = Size(values[0], found) if found is not None else None
        return self._known[key]

    def _find(self, values: list[Fraction]) -> Polynomial | None:
        for candidates in (self._multiples(values), self._sums(values)):
            fitting = {each for each in candidates if self._fits(each, values)}
            if fitting:
                return fitting.pop() if len(fitting) == 1 else None
        return None

    def _multiples(self, values: list[Fraction]) -> Iterator[Polynomial]:
        """One product with a coefficient."""
        for monomial in self._monomials:
            yield Polynomial({monomial: values[0] / self._at(monomial, 0)})

    def _sums(self, values: list[Fraction]) -> Iterator[Polynomial]:
        """Two summands, the simplest first; the first two points give their coefficients."""
        for one, two in combinations([(), *self._monomials], 2):
            (a, b), (c, d) = [(self._at(one, i), self._at(two, i)) for i in (0, 1)]
            if determinant := a * d - b * c:
                left = (values[0] * d - b * values[1]) / determinant
                right = (a * values[1] - values[0] * c) / determinant
                if left and right:
                    yield Polynomial({one: left, two: right})

    def _at(self, monomial: Monomial, point: int) -> Fraction:
        return Fraction(prod(self.points[point][axis] ** power for axis, power in monomial))

    def _fits(self, polynomial: Polynomial, values: list[Fraction]) -> bool:
        return self._parts % polynomial.denominator == 0 and all(
            polynomial.at(point) == value for point, value in zip(self.points, values)
        )


def monomials(axes: Sequence[str]) -> Iterator[Monomial]:
    """Products of powers of axes, those of low degree first."""
    powers = product(range(POWER + 1), repeat=len(axes))
    for each in sorted(powers, key=lambda found: (sum(found), max(found, default=0))):
        if 0 < sum(each) <= DEGREE:
            yield tuple(sorted((axis, power) for axis, power in zip(axes, each) if power))
