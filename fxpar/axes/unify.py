"""Unification of dims: learn that two ways of writing one dimension are the same.

12  against  (3 4)     12 becomes (3 4) everywhere
 6  against  (4 9)     both become (2 3 ...), as far as they have a divisor in common; the rest is locked
12  against  cat[8, 4] 12 becomes cat[8, 4]
 (3 4) against cat[8, 4]  both become (cat[2, 1] 4)
"""

from __future__ import annotations

from math import gcd

from fxpar.axes.factor import Cat, Dim, Factor, Term, concatenation, fresh, leaves, lock, resolve, size_of


def unify(left: Dim, right: Dim) -> None:
    """Merge two dims of the same size, factor by factor from the major side.

    Factors are refined where one side cuts through them; what cannot be aligned is locked, which is always right.
    Raises ValueError if the sizes differ.
    """
    if size_of(left) != size_of(right):
        raise ValueError(f"dims of {size_of(left)} and {size_of(right)} elements cannot be one")
    if size_of(left) == 0:
        return
    a, b = list(resolve(left)), list(resolve(right))
    while a and b:
        if a[0] is b[0] or _merge(a[0], b[0]):
            del a[0], b[0]
        elif not _refine(a, b):
            _lock_until_aligned(a, b)
        a, b = list(resolve(tuple(a))), list(resolve(tuple(b)))


def bind(factor: Factor, dim: Dim) -> None:
    """Let `factor` stand for `dim` (same size, not containing it); a locked factor locks it."""
    factor.bound = dim
    if factor.locked:
        lock(dim)


def refine(factor: Factor, *sizes: int) -> Dim:
    """Split an unbound factor into a product of new ones of these sizes, and return them."""
    pieces = tuple(term for size in sizes for term in fresh(size))
    bind(factor, pieces)
    return pieces


def _merge(x: Term, y: Term) -> bool:
    """Make two terms of equal size one, if that is possible in one step."""
    if x.size != y.size:
        return False
    if isinstance(x, Factor):
        if isinstance(y, Factor):
            x.locked |= y.locked
            x.within = tuple(length for length in x.within if length in y.within)
        bind(x, (y,)) if isinstance(y, Cat) else bind(y, (x,))
        return True
    if isinstance(y, Factor):
        bind(y, (x,))
        return True
    return _merge_cats(x, y)


def _merge_cats(x: Cat, y: Cat) -> bool:
    """Unify two concatenations part by part, cutting plain factors where the other side has a boundary."""
    a, b = list(x.parts), list(y.parts)
    while a and b:
        first, second = size_of(a[0]), size_of(b[0])
        if first == second:
            unify(a.pop(0), b.pop(0))
        elif not (_cut_part(a, second) if first > second else _cut_part(b, first)):
            lock((x,))
            lock((y,))
            return True
        a, b = _parts(a), _parts(b)
    return True


def _parts(parts: list[Dim]) -> list[Dim]:
    dim = concatenation(resolve(part) for part in parts) if parts else ()
    if len(dim) == 1 and isinstance(dim[0], Cat):
        return list(dim[0].parts)
    return [dim] if dim or parts else []


def _cut_part(parts: list[Dim], size: int) -> bool:
    """Cut the first part, if it is one plain factor, into a concatenation whose first part has `size`."""
    part = resolve(parts[0])
    if len(part) != 1 or not isinstance(part[0], Factor):
        return False
    bind(part[0], (Cat((fresh(size), fresh(part[0].size - size))),))
    return True


def _refine(a: list[Term], b: list[Term]) -> bool:
    """Bring the first terms nearer to each other; False where they have nothing in common."""
    x, y = a[0], b[0]
    if isinstance(x, Cat) or isinstance(y, Cat):
        larger, size = (a, y.size) if x.size > y.size else (b, x.size)
        if larger[0].size % size == 0 and _factor_out(larger, larger[0].size // size):
            return True
        return _pull_minor(a) or _pull_minor(b)
    common = gcd(x.size, y.size)
    if common == 1:
        return False
    for factor in (x, y):
        if factor.size != common and factor.bound is None:
            refine(factor, common, factor.size // common)
    return True


def _factor_out(terms: list[Term], minor: int) -> bool:
    """Write the first term as a product whose minor factor has this size: 12 as (3 4), cat[8, 4] as (cat[2, 1] 4)."""
    term = terms[0]
    if isinstance(term, Factor):
        refine(term, term.size // minor, minor)
        return True
    parts = _grouped(term.parts, minor)
    shared = fresh(minor)
    heads = [fresh(size_of(part) // minor) for part in parts]
    for part, head in zip(parts, heads):
        unify(part, (*head, *shared))
    if parts:
        terms[0:1] = [*concatenation(heads), *shared]
    return bool(parts)


def _grouped(parts: tuple[Dim, ...], unit: int) -> list[Dim]:
    """The parts of a concatenation, neighbours together until each has a multiple of `unit`; nothing if that fails."""
    groups: list[Dim] = []
    waiting: list[Dim] = []
    for part in parts:
        waiting.append(part)
        if sum(map(size_of, waiting)) % unit == 0:
            groups.append(concatenation(waiting))
            waiting = []
    return [] if waiting or len(groups) == 1 else groups


def _pull_minor(terms: list[Term]) -> bool:
    """Write cat[(x d), (y d)] as the product cat[x, y] d, which is the same thing."""
    cat = terms[0]
    if not isinstance(cat, Cat):
        return False
    minors = {id(part[-1]) for part in cat.parts if part}
    if len(minors) != 1 or not all(cat.parts) or not isinstance(cat.parts[0][-1], Factor):
        return False
    terms[0:1] = [*concatenation(part[:-1] for part in cat.parts), cat.parts[0][-1]]
    return True


def _lock_until_aligned(a: list[Term], b: list[Term]) -> None:
    """Lock and drop terms on both sides up to the next position where both products agree."""
    left, right = a.pop(0), b.pop(0)
    product_a, product_b = left.size, right.size
    lock((left,))
    lock((right,))
    while product_a != product_b:
        side = a if product_a < product_b else b
        term = side.pop(0)
        lock((term,))
        if side is a:
            product_a *= term.size
        else:
            product_b *= term.size


def same(left: Dim, right: Dim) -> bool:
    """Whether two dims resolve to the same factors."""
    a, b = resolve(left), resolve(right)
    return size_of(a) == size_of(b) and [*leaves(a)] == [*leaves(b)]
