"""Numbers as reports write them."""

from __future__ import annotations

from fractions import Fraction

_PREFIXES = {12: "T", 9: "G", 6: "M", 3: "k", 0: "", -3: "m", -6: "µ"}


def percent(share: Fraction | float) -> str:
    """A share in percent: `37.5 %`."""
    return f"{float(share) * 100:.1f} %"


def count(number: Fraction | float) -> str:
    """A number of things that may be in parts: `4`, `4.5`, `5.33`."""
    return f"{float(number):.2f}".rstrip("0").rstrip(".")


def amount(number: Fraction | float) -> str:
    """A quantity in four digits, and a prefix where it is 10,000 or more or less than 0.01: `33`, `1.25`, `12.35 G`."""
    value = float(number)
    size = abs(value)
    if size == 0 or 0.01 <= size < 1e4:
        return f"{value:.4g}"
    power = next((power for power in _PREFIXES if size >= 10.0**power), -6)
    prefix = _PREFIXES[power]
    return f"{value / 10.0**power:.4g}{prefix and f' {prefix}'}"
