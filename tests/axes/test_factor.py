from __future__ import annotations

from fxpar.axes.factor import (
    Cat,
    Factor,
    concatenation,
    count,
    fresh,
    holds,
    leaves,
    lock,
    resolve,
    size_of,
    text,
)


def name(factor: Factor) -> str:
    return str(factor.size)


def test_sizes() -> None:
    assert fresh(1) == ()
    assert size_of(()) == 1
    assert size_of((Factor(3), Cat(((Factor(4),), ())))) == 15
    assert fresh(0)[0].locked  # type: ignore[union-attr]


def test_resolve_flattens() -> None:
    heads, depth, whole, fused = Factor(2), Factor(3), Factor(6), Factor(9)
    whole.bound = (heads, depth)
    fused.bound = (Cat(((whole,), (depth,))),)
    assert text(resolve((fused, Factor(5))), name) == "(cat[(2 3), 3] 5)"
    assert [*leaves(resolve((fused,)))] == [heads, depth, depth]


def test_concatenations_are_spliced() -> None:
    a, b, c = Factor(2), Factor(3), Factor(4)
    nested = concatenation([(a,), concatenation([(b,), (c,)]), fresh(0)])
    assert text(nested, name) == "cat[2, 3, 4]"
    assert concatenation([(a,), fresh(0)]) == (a,)


def test_texts() -> None:
    assert text((), name) == "1"
    assert text((Factor(4),), name) == "4"
    assert text((Factor(4), Factor(2)), name) == "(4 2)"
    assert text((Cat(((Factor(4), Factor(2)), ())),), name) == "cat[(4 2), 1]"


def test_count() -> None:
    a, b = Factor(2), Factor(3)
    assert count((a, b), a) == 1
    assert count((a, b, a), a) == 2
    assert count((Cat(((a, b), (a,))),), a) == 1
    assert not holds((Cat(((a, b), (b, b))),), a)
    assert not holds((a, Cat(((a,), (b,)))), a)
    assert not holds((Cat(((a, a), (a,))),), a)


def test_lock_reaches_what_a_factor_stands_for() -> None:
    whole, part = Factor(4), Factor(2)
    whole.bound = (part, Factor(2))
    lock((whole,))
    assert part.locked
