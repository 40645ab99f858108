"""Factors and dims: what a tensor dimension is made of.

    4096 rows of a query weight   (heads d)                     a product, major factor first
    rows of a fused projection    cat[(kv g d), (kv d), (kv d)]  a concatenation of dims

A factor is a variable of known size. Inference binds it to another factor (the two are one thing), to a product
(it was found to be made of smaller pieces) or to a concatenation; `resolve` replaces what is bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias


class Factor:
    """An indivisible piece of a dimension: a size (elements) and an identity. A locked factor is never split.

    One that a slice made, of which nothing else is known, has the lengths of the dims that were sliced, `within`.
    """

    __slots__ = ("bound", "locked", "size", "within")

    def __init__(self, size: int, locked: bool = False, within: tuple[int, ...] = ()) -> None:
        self.size = size
        self.locked = locked
        self.within = within
        self.bound: Dim | None = None

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.locked else ''}@{id(self) & 0xFFFF:04x}"


@dataclass(frozen=True, eq=False)
class Cat:
    """A concatenation of dims, in order."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """The length of the whole concatenation."""
        return sum(size_of(part) for part in self.parts)


Term: TypeAlias = Factor | Cat
#: One tensor dimension: an ordered product of terms, major first. A dimension of size 1 is empty.
Dim: TypeAlias = tuple[Term, ...]


def size_of(dim: Iterable[Term]) -> int:
    """The number of elements along a dim."""
    return prod(term.size for term in dim)


def fresh(size: int, locked: bool = False, within: tuple[int, ...] = ()) -> Dim:
    """A dim of one new factor; nothing for size 1."""
    return () if size == 1 else (Factor(size, locked or size == 0, within),)


def resolve(dim: Dim) -> Dim:
    """The dim with every bound factor replaced by what it stands for, products and concatenations flattened."""
    for term in dim:
        if isinstance(term, Cat) or term.bound is not None:
            break
    else:
        return dim
    out: list[Term] = []
    for term in dim:
        if isinstance(term, Cat):
            out.extend(_resolve_cat(term))
        elif term.bound is None:
            out.append(term)
        else:
            term.bound = resolve(term.bound)
            out.extend(term.bound)
    return tuple(out)


def concatenation(parts: Iterable[Dim]) -> Dim:
    """The concatenation of dims: empty parts go, nested ones are spliced in, a single one stands for itself."""
    flat: list[Dim] = []
    for part in parts:
        if size_of(part) == 0:
            continue
        if len(part) == 1 and isinstance(part[0], Cat):
            flat.extend(part[0].parts)
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else (Cat(tuple(flat)),)


def _resolve_cat(cat: Cat) -> Dim:
    parts = [resolve(part) for part in cat.parts]
    if all(new is old for new, old in zip(parts, cat.parts)):
        return (cat,)
    return concatenation(parts)


def leaves(dim: Dim) -> Iterator[Factor]:
    """Every factor of a resolved dim, also those inside concatenations, in order."""
    for term in dim:
        if isinstance(term, Factor):
            yield term
        else:
            for part in term.parts:
                yield from leaves(part)


def holds(dim: Dim, factor: Factor) -> bool:
    """Whether splitting `factor` splits the resolved dim: it stands there, in a concatenation in every part."""
    return count(dim, factor) == 1


def count(dim: Dim, factor: Factor) -> int:
    """How often `factor` stands in the product.

    Once for a concatenation each of whose parts holds it; twice, which is too often, for one that has it otherwise.
    """
    total = 0
    for term in dim:
        if isinstance(term, Cat):
            total += 1 if all(holds(part, factor) for part in term.parts) else 2 * (factor in leaves((term,)))
        else:
            total += term is factor
    return total


def holds_partly(dim: Dim, factor: Factor) -> bool:
    """Whether splitting `factor` splits some parts of a concatenation in the resolved dim and leaves others whole."""
    cats = [term for term in dim if isinstance(term, Cat) and factor in leaves((term,))]
    if len(cats) != 1 or factor in dim or holds(dim, factor):
        return False
    return all(
        holds(part, factor) or holds_partly(part, factor) or factor not in leaves(part)
        for part in cats[0].parts
    )


def lock(dim: Dim) -> None:
    """Forbid that any factor of the dim is ever split."""
    for factor in leaves(resolve(dim)):
        factor.locked = True


def text(dim: Dim, name: Callable[[Factor], str]) -> str:
    """A resolved dim in factor notation, `1`, `heads`, `(heads d)` or `cat[(heads d), d]`."""
    words = [name(term) if isinstance(term, Factor) else _cat_text(term, name) for term in dim]
    if len(words) == 1:
        return words[0]
    return f"({' '.join(words)})" if words else "1"


def _cat_text(cat: Cat, name: Callable[[Factor], str]) -> str:
    return f"cat[{', '.join(text(part, name) for part in cat.parts)}]"
