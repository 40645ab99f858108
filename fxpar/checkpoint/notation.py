"""Dims as texts that stand in an index: factor notation with sizes.

    vocab=512                                                     one named factor
    (heads=8 depth=4)                                             a product, major factor first
    cat[(heads=2 groups=4 depth=8), (heads=2 depth=8), 16]        a concatenation; what has no axis is a number
    (hidden=2 hidden'=16)                                         two factors of one axis

Within a tensor, equal words are the same factor. What may never be split is a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from fxpar.axes.factor import Cat, Dim, Factor, Term, leaves, size_of, text
from fxpar.errors import CheckpointError

_TOKEN = re.compile(r"\s*(cat\[|[()\],]|[^\W\d]\w*'*=\d+|\d+)")
#: Of a dim: how deep parentheses stand in each other, its letters, and the digits of a size.
_DEEP, _LONG, _DIGITS = 16, 100_000, 19


def written(dims: Iterable[Dim], axis: Callable[[Factor], str | None]) -> tuple[str, ...]:
    """Resolved dims of one tensor as texts; `axis` names the factors that may be split."""
    words: dict[Factor, str] = {}
    dims = tuple(dims)
    for dim in dims:
        for factor in leaves(dim):
            name = None if factor.locked else axis(factor)
            if name and factor not in words:
                while any(word.partition("=")[0] == name for word in words.values()):
                    name += "'"
                words[factor] = f"{name}={factor.size}"
    return tuple(text(dim, lambda factor: words.get(factor, str(factor.size))) for dim in dims)


@dataclass
class Read:
    """The dims of a tensor, and the name of the axis of each factor that has one."""

    dims: tuple[Dim, ...]
    axes: dict[Factor, str]


def read(texts: Sequence[str]) -> Read:
    """Read what `written` wrote. Raises CheckpointError for anything else."""
    reader = _Reader()
    dims = tuple(reader.dim(each) for each in texts)
    return Read(dims, {factor: word.rstrip("'") for word, factor in reader.factors.items()})


@lru_cache(maxsize=4096)
def sized(texts: tuple[str, ...], shape: tuple[int, ...]) -> Read:
    """Read the dims of a tensor of that shape. Raises CheckpointError for dims of other sizes, too."""
    found = read(texts)
    for number, (dim, size) in enumerate(zip(found.dims, shape, strict=True)):
        if size_of(dim) != size:
            raise CheckpointError(f"its dim {number} is `{texts[number]:.80}`, which is {size_of(dim)} long")
    return found


@dataclass
class _Reader:
    """Reads the texts of one tensor, word by word."""

    factors: dict[str, Factor] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)

    def dim(self, text: str) -> Dim:
        self.tokens = _tokens(text)
        dim = self._dim(text, 0)
        if self.tokens:
            raise CheckpointError(f"`{text}` is no dim: `{self.tokens[0]}` is too much")
        return dim

    def _dim(self, text: str, depth: int) -> Dim:
        """A factor, a product in parentheses, or a concatenation."""
        if self._next() != "(":
            return self._term(text, depth)
        self.tokens.pop(0)
        terms: list[Term] = []
        while self._next() not in (")", ""):
            terms += self._term(text, depth)
        self._take(")", text)
        return tuple(terms)

    def _term(self, text: str, depth: int) -> Dim:
        if depth > _DEEP:
            raise CheckpointError(f"`{text[:40]}...` is nested too deep")
        word = self._next()
        if word == "cat[":
            return (self._cat(text, depth + 1),)
        if not word or word in "(),]":
            raise CheckpointError(f"`{text}` is no dim: a factor is missing")
        self.tokens.pop(0)
        return self._factor(word, text)

    def _cat(self, text: str, depth: int) -> Cat:
        self.tokens.pop(0)
        parts = [self._dim(text, depth)]
        while self._next() == ",":
            self.tokens.pop(0)
            parts.append(self._dim(text, depth))
        self._take("]", text)
        return Cat(tuple(parts))

    def _factor(self, word: str, text: str) -> Dim:
        name, _, size = word.rpartition("=")
        if len(size) > _DIGITS:
            raise CheckpointError(f"`{word:.40}...` is no size")
        if not name:
            return () if size == "1" else (Factor(int(size), locked=True),)
        factor = self.factors.setdefault(name, Factor(int(size)))
        if factor.size != int(size):
            raise CheckpointError(f"`{text}`: `{name}` has the sizes {factor.size} and {size}")
        return (factor,)

    def _next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def _take(self, wanted: str, text: str) -> None:
        if self._next() != wanted:
            raise CheckpointError(f"`{text}` is no dim: `{wanted}` is missing")
        self.tokens.pop(0)


def _tokens(text: str) -> list[str]:
    found, at, stop = [], 0, len(text.rstrip())
    if stop > _LONG:
        raise CheckpointError(
            f"`{text:.40}...` is no dim: it has {stop} letters, and at most {_LONG} are read"
        )
    while at < stop:
        match = _TOKEN.match(text, at)
        if match is None:
            raise CheckpointError(f"`{text}` is no dim: `{text[at : at + 10]}` cannot be read")
        found.append(match[1])
        at = match.end()
    return found
