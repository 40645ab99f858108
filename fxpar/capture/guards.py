"""What `torch.export` found that a model asks of sizes: comparisons that came out as they did in the example.

    if x.shape[0] * x.shape[1] < 500:      batch * sequence < 500, or its opposite

One graph serves the sizes for which they all come out so.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

from fxpar.condition import Condition

#: The least and the largest size of an axis, None where there is no largest.
Bounds = tuple[int, int | None]
#: What torch prints, and what a condition has for it.
_WORDS = {r"torch\.sym_float\(": "float(", r"math\.trunc\(": "int("}
#: Functions of torch that ask for the order of a tensor's elements in memory, which changes no result.
_STRIDES = re.compile("contiguous|overlapping|channels_last|compute_.*strides")
_TORCH = str(Path(torch.__file__).parent)
#: Files of torch through which whoever asks goes: the model itself, or another function of torch.
_BETWEEN = tuple(
    f"{_TORCH}/{name}" for name in ("fx/experimental/", "_export/", "overrides.py", "__init__.py")
)


@dataclass(frozen=True)
class Guard:
    """A comparison of symbols, and the line of the model that it comes from."""

    expression: sympy.Basic
    place: str = ""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols in it, by name."""
        return tuple(sorted(str(symbol) for symbol in self.expression.free_symbols))

    def condition(self, names: Mapping[str, str], bounds: Mapping[str, Bounds]) -> Condition | None:
        """The same of axes, `names` by symbol; None where it always holds, their sizes being within `bounds`.

        Raises ValueError for one that cannot be said with sums, products, quotients, `max` and `min`.
        """
        found = self.expression.xreplace(
            {
                s: sympy.Symbol(names[str(s)], integer=True, positive=True)
                for s in self.expression.free_symbols
            }
        )
        if found is sympy.true or _always(found, bounds):
            return None
        text = PythonPrinter().doprint(found)
        for torchs, ours in _WORDS.items():
            text = re.sub(torchs, ours, text)
        try:
            made = Condition(ast.unparse(ast.parse(text, mode="eval")), self.place)
        except SyntaxError as error:
            raise ValueError(text) from error
        made.holds({name: least for name, (least, _) in bounds.items()})
        return made


def chooses_strides() -> bool:
    """Whether torch compares sizes now to know whether a tensor is contiguous, or to choose its strides."""
    frame: FrameType | None = sys._getframe(1)
    found = False
    while frame is not None:
        code = frame.f_code
        named = _STRIDES.search(code.co_name) and code.co_filename.startswith(_TORCH)
        if found and not named and not code.co_filename.startswith(_BETWEEN):
            return code.co_filename.startswith(_TORCH)
        found = found or bool(named)
        frame = frame.f_back
    return False


def guards(env: ShapeEnv) -> tuple[Guard, ...]:
    """All comparisons that export met, each once; their `place` is that of `ShapeGuard.sloc`."""
    found: dict[sympy.Basic, str] = {}
    for guard in env.guards:
        place = guard.sloc.framework_loc
        found.setdefault(env.replace(guard.expr), place if isinstance(place, str) else "")
    return tuple(Guard(expression, place) for expression, place in found.items())


def _always(found: sympy.Basic, bounds: Mapping[str, Bounds]) -> bool:
    """Whether a comparison of polynomials is seen to hold for all sizes within the bounds."""
    if not isinstance(found, sympy.core.relational.Relational):
        return False
    difference = sympy.expand(found.lhs - found.rhs)
    if not difference.is_polynomial() or not all(c.is_integer for c in sympy.Poly(difference).coeffs()):
        return False
    above, below = difference - 1, -difference - 1
    match found.rel_op:
        case "==":
            return bool(difference == 0)
        case "!=":
            return _never_negative(above, bounds) or _never_negative(below, bounds)
        case ">=":
            return _never_negative(difference, bounds)
        case ">":
            return _never_negative(above, bounds)
        case "<=":
            return _never_negative(-difference, bounds)
    return _never_negative(below, bounds)


def _never_negative(polynomial: sympy.Expr, bounds: Mapping[str, Bounds]) -> bool:
    """Whether a polynomial is at least 0: its coefficients are, where sizes are counted from the least."""
    symbols = sorted(polynomial.free_symbols, key=str)
    if len(symbols) == 1 and sympy.degree(polynomial) == 1:
        least, most = bounds[str(symbols[0])]
        ends = [least] if most is None else [least, most]
        rises = sympy.Poly(polynomial).LC() > 0
        return all(polynomial.subs(symbols[0], end) >= 0 for end in ends) and (rises or most is not None)
    shifted = sympy.expand(polynomial.subs({s: s + bounds[str(s)][0] for s in symbols}, simultaneous=True))
    return all(c >= 0 for c in (sympy.Poly(shifted, *symbols).coeffs() if symbols else [shifted]))
