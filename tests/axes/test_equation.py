from __future__ import annotations

import pytest

from fxpar.axes.equation import parse


@pytest.mark.parametrize(
    "text",
    [
        "... i, o i, o? -> ... o",
        "b (h g) s d, b h t d, b h t e, ... s t? -> b (h g) s e",
        "v h, ... -> ... h",
        "i, i -> ",
        "n (g i) _ _, (g o) i _ _ -> n (g o) _ _",
        "... -> ..., ...",
        "n 1 heads -> heads n",
        "n c, c? -> n c when training=false",
        "n d ->  when reduction=1",
    ],
)
def test_written_as_read(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a b", "`a b` must have exactly one `->`"),
        ("a -> b -> c", "`a -> b -> c` must have exactly one `->`"),
        ("a -> b", "`a -> b`: output role `b` stands in no operand"),
        ("a ... -> ... b c", "`a ... -> ... b c`: output role `b` stands in no operand"),
        ("a (b -> a", "cannot read `a (b`: `(` without `)`"),
        ("a b) -> a", "cannot read `a b)`: `)` is out of place"),
        ("() a -> a", "cannot read `() a`: `)` is out of place"),
        ("((a)) -> a", "cannot read `((a))`: `(` is out of place"),
        ("(a ...) -> a", "cannot read `(a ...)`: `...` is out of place"),
        ("(a 1) -> a", "cannot read `(a 1)`: `1` is out of place"),
        ("... a ... -> a", "cannot read `... a ...`: two `...`"),
        ("a? b -> a", "cannot read `a? b` at `b`"),
        ("a + b -> a", "cannot read `a + b` at `+ b`"),
        ("a 2 -> a", "cannot read `a 2` at `2`"),
        ("a -> a when b", "cannot read `when b`: write `when training=false` or `when reduction=1`"),
        ("a -> a when b=c", "cannot read `when b=c`: write `when training=false` or `when reduction=1`"),
    ],
)
def test_unreadable(text: str, wanted: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value) == wanted


def test_dots_are_numbered_from_the_right() -> None:
    operand = parse("a ... b -> a").inputs[0]
    assert operand.expand(4) == (("a",), ("...-2",), ("...-1",), ("b",))
    assert operand.expand(2) == (("a",), ("b",))


@pytest.mark.parametrize(("text", "rank"), [("a b ->", 3), ("a b ->", 1), ("a ... b ->", 1), ("->", 1)])
def test_a_tensor_that_does_not_fit(text: str, rank: int) -> None:
    operand = parse(text).inputs[0]
    with pytest.raises(ValueError) as error:
        operand.expand(rank)
    assert str(error.value) == f"a tensor of {rank} dimensions does not fit `{operand}`"


def test_roles() -> None:
    assert parse("n (g i) _, ... -> n g _").roles == {"n", "g", "i", "..."}
