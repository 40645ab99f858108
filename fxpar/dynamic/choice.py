"""Which other sizes a model is captured at, beside those of the example.

They divide as the example's do, by the numbers of ranks and of microbatches, so that the same is split. They are
unlike all other sizes, and no two of them are the same multiple of the example's, so that what depends on which shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import gcd, isqrt, prod

from fxpar.capture.program import DynamicAxis, Program
from fxpar.condition import Condition
from fxpar.dynamic.fit import monomials
from fxpar.errors import PlanError

#: How many other sizes a model is captured at. Every expression has to hold at them all.
COUNT = 2
#: How many sizes are tried until they are in general position.
TRIALS = 40
#: The largest number of ranks' multiples that is looked at.
TRIES = 20000


def choose(
    program: Program,
    axes: Sequence[DynamicAxis],
    parts: Mapping[str, int],
    least: Mapping[str, int] | None = None,
) -> list[dict[str, int]]:
    """Sizes by axis, `COUNT` times. `parts` is, by axis, the number of ranks and microbatches that it goes over.

    The last ones are at least `least`, or as large as may be. Raises PlanError for an axis that has no other size.
    """
    own = {int(size) for tensor in program.tensors.values() for size in tensor.shape}
    own |= {axis.size for axis in axes}
    example = {axis.name: axis.size for axis in axes}
    refused: set[tuple[str, int]] = set()
    asked = program.conditions
    found = _chosen(axes, parts, own, least or {}, refused, asked)
    for _ in range(TRIALS):
        if is_general([example, *found]):
            break
        refused |= {(axis, size) for axis, size in found[0].items() if axis == axes[-1].name}
        try:
            found = _chosen(axes, parts, own, least or {}, refused, asked)
        except PlanError:
            break
    return found


def is_general(points: Sequence[Mapping[str, int]]) -> bool:
    """Whether no product of axes is a sum of two others, or of one and a number, at all of three points."""
    rows = [
        [prod(point[axis] ** power for axis, power in monomial) for point in points]
        for monomial in ((), *monomials(list(points[0])))
    ]
    return all(_determinant(three) for three in combinations(rows, 3))


def _determinant(rows: Sequence[Sequence[int]]) -> int:
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _chosen(
    axes: Sequence[DynamicAxis],
    parts: Mapping[str, int],
    own: set[int],
    least: Mapping[str, int],
    refused: set[tuple[str, int]],
    asked: Sequence[Condition],
) -> list[dict[str, int]]:
    taken, ratios = set(own), {Fraction(1)}
    found: list[dict[str, int]] = [{} for _ in range(COUNT)]
    for turn, sizes in enumerate(found):
        for axis in axes:
            floor = least.get(axis.name, 0) if turn == COUNT - 1 else 0
            bad = {Fraction(size, axis.size) for name, size in refused if name == axis.name and turn == 0}
            fits = _Fits(axis.name, sizes, [each for each in asked if axis.name in each.axes])
            sizes[axis.name] = _size(axis, parts[axis.name], taken, ratios | bad, floor, fits)
            taken.add(sizes[axis.name])
            ratios.add(Fraction(sizes[axis.name], axis.size))
    return found


@dataclass(frozen=True)
class _Fits:
    """Whether an axis may have a size, as far as the sizes of others are known."""

    name: str
    known: Mapping[str, int]
    asked: Sequence[Condition]

    def __call__(self, size: int) -> bool:
        sizes = {**self.known, self.name: size}
        return all(each.holds(sizes) for each in self.asked if sizes.keys() >= set(each.axes))

    @property
    def details(self) -> list[str]:
        return [f"the model goes the same way only where {each.text} ({each.place})" for each in self.asked]


def _size(
    axis: DynamicAxis,
    parts: int,
    taken: set[int],
    ratios: set[Fraction],
    floor: int,
    fits: _Fits,
) -> int:
    unit = gcd(axis.size, parts)
    most = axis.most
    if most is not None and floor > most:
        fitting = (n for n in range(most, 1, -1) if gcd(n, parts) == unit and fits(n))
        top = next((n for n in fitting if Fraction(n, axis.size) not in ratios), None)
        if top is not None:
            return top
        floor = 0
    known: list[int] = []
    for size in filter(fits, _multiples(unit, parts, max(axis.least, floor), most)):
        new = Fraction(size, axis.size) not in ratios
        if new and size not in taken:
            return size
        known += [size] * new
    if known:
        return known[0]
    limit = f", and at most {most}" if most is not None else ""
    raise PlanError(
        f"axis `{axis.name}` cannot be dynamic: it has too few sizes beside {axis.size}",
        details=[
            f"it has to be a multiple of {unit} as in the example{limit}",
            *fits.details,
            "leave it out of `dynamic`",
        ],
    )


def _multiples(unit: int, parts: int, least: int, most: int | None) -> Iterator[int]:
    """Multiples of `unit` that no more parts divide: by primes first, then by anything.

    The largest size is left out: what takes the first rows of a table would take it whole there, and vanish.
    """
    start = max(1, -(-least // unit))
    stop = start + TRIES if most is None else min(start + TRIES, (most - 1) // unit + 1)
    possible = [k for k in range(start, stop) if k * unit > 1 and gcd(k * unit, parts) == unit]
    yield from (k * unit for k in possible if _is_prime(k))
    yield from (k * unit for k in possible)


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
