"""Dims as texts with sizes, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpar.axes.factor import Cat, Dim, Factor, leaves, size_of
from fxpar.axes.runs import dim_runs
from fxpar.checkpoint.notation import read, written
from fxpar.errors import CheckpointError

HEADS, GROUPS, DEPTH, OTHER, LOCKED = Factor(2), Factor(4), Factor(8), Factor(8), Factor(3, locked=True)
NAMES = {HEADS: "heads", GROUPS: "groups", DEPTH: "depth", OTHER: "depth", LOCKED: "locked"}
FUSED: Dim = (Cat(((HEADS, GROUPS, DEPTH), (HEADS, DEPTH), (HEADS, OTHER))),)


def test_a_fused_weight() -> None:
    texts = written([FUSED, (LOCKED,), ()], NAMES.get)
    assert texts == (
        "cat[(heads=2 groups=4 depth=8), (heads=2 depth=8), (heads=2 depth'=8)]",
        "3",
        "1",
    )
    found = read(texts)
    assert [size_of(dim) for dim in found.dims] == [96, 3, 1]
    assert sorted(found.axes.values()) == ["depth", "depth", "groups", "heads"]
    (heads,) = [factor for factor, name in found.axes.items() if name == "heads"]
    assert dim_runs(found.dims[0], {heads: (2, 1)}) == dim_runs(FUSED, {HEADS: (2, 1)})


def test_what_no_rule_names_is_a_number() -> None:
    assert written([(HEADS, Factor(5))], {HEADS: "heads"}.get) == ("(heads=2 5)",)


def dims(factors: list[Factor], depth: int = 2) -> st.SearchStrategy[Dim]:
    """Products and concatenations of some factors."""
    term: st.SearchStrategy[Factor | Cat] = st.sampled_from(factors)
    if depth:
        parts = st.lists(dims(factors, depth - 1).filter(bool), min_size=2, max_size=3)
        term |= st.builds(lambda each: Cat(tuple(each)), parts)
    return st.lists(term, max_size=3).map(tuple)


@given(st.lists(dims(list(NAMES)), max_size=3))
def test_any_dims_come_back(given: list[Dim]) -> None:
    texts = written(given, NAMES.get)
    found = read(texts)
    assert written(found.dims, found.axes.get) == texts
    mine = {f: n for dim in given for f in leaves(dim) if not f.locked for n in [NAMES[f]]}
    assert sorted(found.axes.values()) == sorted(mine.values())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "`` is no dim: a factor is missing"),
        (["heads"], "`heads` is no dim: `heads` cannot be read"),
        (["(heads=2"], "`(heads=2` is no dim: `)` is missing"),
        (["heads=2 4"], "`heads=2 4` is no dim: `4` is too much"),
        (["cat[2, 3"], "`cat[2, 3` is no dim: `]` is missing"),
        (["heads=2", "heads=3"], "`heads=3`: `heads` has the sizes 2 and 3"),
        (["cat[" * 100], "nested too deep"),
    ],
)
def test_other_texts(texts: list[str], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(texts)
    assert message in str(error.value)
