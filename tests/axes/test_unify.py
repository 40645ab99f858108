from __future__ import annotations

from typing import Any

import pytest
from graphs import Letters
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpar.axes.cut import coordinates
from fxpar.axes.factor import Cat, Dim, Factor, Term, holds, leaves, resolve, size_of
from fxpar.axes.unify import refine, same, unify

#: A dim as a text: a number is a factor, a word a factor that may stand in several dims, a list a concatenation.
Spec = tuple[Any, ...]


def build(spec: Spec, shared: dict[str, Factor] | None = None) -> Dim:
    """(2, [4, (2, 3)]) -> the dim (2 cat[4, (2 3)]); "a4" is the shared factor `a` of size 4."""
    shared = {} if shared is None else shared
    terms: list[Term] = []
    for part in spec:
        if isinstance(part, list):
            terms.append(Cat(tuple(build(p if isinstance(p, tuple) else (p,), shared) for p in part)))
        elif isinstance(part, str):
            terms.append(shared.setdefault(part, Factor(int(part[1:]))))
        elif part != 1:
            terms.append(Factor(part))
    return tuple(terms)


@pytest.mark.parametrize(
    ("left", "right", "wanted"),
    [
        ((12,), (12,), "a a"),
        ((12,), (3, 4), "(a b) (a b)"),
        ((3, 4), (12,), "(a b) (a b)"),
        ((2, 6), (4, 3), "(a b c) (a b c)"),
        ((12,), ([8, 4],), "cat[a, b] cat[a, b]"),
        (([8, 4],), ([4, 8],), "cat[a, b, c] cat[a, b, c]"),
        (([8, 4],), (3, 4), "cat[(a b), b] (cat[a, 1] b)"),
        (([(2, 3), (4, 3)],), (6, 3), "cat[(a b), (c b)] (cat[a, c] b)"),
        (([(2, 3), (2, "d3")],), (4, "d3"), "cat[(a b), (c b)] (cat[a, c] b)"),
        (([4, 4], 3), ([12, 12],), "(cat[a, b] c) cat[(a c), (b c)]"),
        (([4, 4], 3), ([6, 18],), "(cat[a, b, c] d) cat[(a d), (cat[b, c] d)]"),
        ((6,), (4, 9), None),
        ((4, 9), (6, 6), "(a B C) (a D E)"),
        (([(3, 2), 3],), ([5, 4],), "cat[(A B), C] cat[D, E]"),
        ((4,), ([1, 3],), "cat[1, a] cat[1, a]"),
        (("a4", "b4"), ("b4", "a4"), "(a a) (a a)"),
        (("a2", "b4"), ("b4", "a2"), "(a a a) (a a a)"),
        (([(3, 2), 4, 4],), (7, 2), "cat[(a b), (c b), (d b)] (cat[a, c, d] b)"),
        ((), (), "1 1"),
    ],
)
def test_examples(left: Spec, right: Spec, wanted: str | None) -> None:
    shared: dict[str, Factor] = {}
    a, b = build(left, shared), build(right, shared)
    if wanted is None:
        with pytest.raises(ValueError, match=r"^dims of 6 and 36 elements cannot be one$"):
            unify(a, b)
    else:
        unify(a, b)
        assert Letters().of(a, b) == wanted


def specs(size: int, depth: int = 2) -> st.SearchStrategy[Spec]:
    """Dims of a size: products, in which some factors may be shared, and concatenations."""
    divisors = [d for d in range(2, size) if size % d == 0]
    leaf = st.sampled_from([(size,), (f"a{size}",), (f"b{size}",)]) if size > 1 else st.just(())
    found = [leaf]
    if divisors:
        found.append(
            st.sampled_from(divisors).flatmap(
                lambda d: st.tuples(specs(d, depth), specs(size // d, depth)).map(
                    lambda pair: (*pair[0], *pair[1])
                )
            )
        )
    if depth and size > 1:
        found.append(
            st.integers(1, size - 1).flatmap(
                lambda d: st.tuples(specs(d, depth - 1), specs(size - d, depth - 1)).map(
                    lambda pair: ([*pair],)
                )
            )
        )
    return st.one_of(found)


pairs = st.sampled_from([4, 6, 8, 12, 24]).flatmap(lambda size: st.tuples(specs(size), specs(size)))


def facts(dim: Dim) -> set[tuple[Factor, tuple[int, ...]]]:
    """What a dim says of its elements: every factor that it can be split on, with each element's coordinate."""
    resolved = resolve(dim)
    return {
        (f, tuple(coordinates(resolved, f))) for f in leaves(resolved) if not f.locked and holds(resolved, f)
    }


@settings(max_examples=200, deadline=None)
@given(pairs)
def test_what_is_unified_says_the_same(pair: tuple[Spec, Spec]) -> None:
    shared: dict[str, Factor] = {}
    left, right = build(pair[0], shared), build(pair[1], shared)
    size = size_of(left)
    unify(left, right)
    assert size_of(resolve(left)) == size_of(resolve(right)) == size
    assert facts(left) == facts(right)


@settings(max_examples=200, deadline=None)
@given(pairs)
def test_unifying_again_changes_nothing(pair: tuple[Spec, Spec]) -> None:
    """Where a factor stands several times in the dims, what is found of it last may need further rounds."""
    shared: dict[str, Factor] = {}
    left, right = build(pair[0], shared), build(pair[1], shared)
    repeated = _repeated(left, right)
    unify(left, right)
    for _ in range(4 if repeated else 0):
        unify(left, right)
    once = Letters().of(left, right)
    unify(left, right)
    assert Letters().of(left, right) == once


def _repeated(*dims: Dim) -> bool:
    found = [factor for dim in dims for factor in leaves(dim)]
    return len(found) > len(set(found))


@settings(max_examples=200, deadline=None)
@given(pairs)
def test_either_side_may_stand_first(pair: tuple[Spec, Spec]) -> None:
    texts = []
    for turned in (False, True):
        shared: dict[str, Factor] = {}
        left, right = build(pair[0], shared), build(pair[1], shared)
        unify(*((right, left) if turned else (left, right)))
        texts.append(Letters().of(left, right))
    assert texts[0] == texts[1]


def test_a_locked_factor_locks_what_it_becomes() -> None:
    whole = Factor(12, locked=True)
    unify((whole,), build((3, 4)))
    assert Letters().of((whole,)) == "(A B)"


def test_refine() -> None:
    factor = Factor(12)
    assert [piece.size for piece in refine(factor, 2, 1, 6)] == [2, 6]
    assert Letters().of((factor,)) == "(a b)"


def test_same() -> None:
    a, b = Factor(4), Factor(4)
    assert not same((a,), (b,))
    unify((a,), (b,))
    assert same((a,), (b,))
