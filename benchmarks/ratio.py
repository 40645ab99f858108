"""Two ways to do one thing, timed in turns: their ratio holds on a machine whose speed changes with what else runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Ratio:
    """The seconds of each round of two ways."""

    first: list[float]
    second: list[float]

    @property
    def rounds(self) -> list[float]:
        """Seconds of the first by seconds of the second, round by round."""
        return [a / b for a, b in zip(self.first, self.second)]

    @property
    def value(self) -> float:
        """The median of the rounds' ratios."""
        return median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the rounds' ratios."""
        if len(self.rounds) < 2:
            return self.value, self.value
        low, _, high = quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


def compare(first: Callable[[], object], second: Callable[[], object], rounds: int, warm: int = 2) -> Ratio:
    """Run both `warm` times, then `rounds` times in turns; which one begins changes from round to round."""
    for _ in range(warm):
        first()
        second()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (first, second)[which]()
            seconds[which].append(time.perf_counter() - start)
    return Ratio(seconds[0], seconds[1])
