"""The table of splits as it is read: order, optional mesh dims, and what is refused."""

from __future__ import annotations

import pytest
from shard_case import rows, splits

from fxpar.errors import PlanError
from fxpar.shard.table import check_known, rank_of


def test_rows_in_order() -> None:
    table = rows('ffn: tp\nsequence: [cp, "tp?"]\nbatch:\n')
    assert list(table) == ["ffn", "sequence", "batch"]
    assert table["sequence"].over == ("cp", "tp")
    assert table["sequence"].optional == {"tp"}
    assert table["batch"].over == ()
    assert table["sequence"].source == "plan.yaml:2"


def test_marks() -> None:
    row = rows('vocab: tp~\nffn: [dp~, "cp?", tp]')["ffn"]
    assert (row.over, row.uneven, row.optional) == (("dp", "cp", "tp"), {"dp"}, {"cp"})
    assert list(row.words.values()) == ["dp~", "cp?", "tp"]
    assert {axis: row.uneven for axis, row in splits("default").items() if row.uneven} == {"vocab": {"tp"}}


def test_precedence() -> None:
    table = splits("default")
    assert [rank_of(table, axis, "tp") for axis in ("heads", "ffn", "vocab", "sequence")] == [0, 1, 2, 3]
    assert rank_of(table, "batch", "tp") is None
    assert rank_of(table, "depth", "tp") is None
    assert rank_of(table, None, "tp") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ffm: tp", "plan.yaml:1:1: .*`ffm`.*ffn"),
        ("ffn: tq", "plan.yaml:1:6: `tq` is no mesh dim.*tp"),
        ("heads: tp\nffn: [cp, tq]", "plan.yaml:2:11: `tq` is no mesh dim"),
        ('ffn: [tp, "tp?"]', "`tp` stands twice in the row of `ffn`"),
        ("ffn: tp~~", "`tp~` is no mesh dim"),
        ("ffn: [tp, tp~]", "`tp` stands twice in the row of `ffn`"),
        ("ffn: tp\nffn: cp", "plan.yaml:2:1: .*ffn"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=f"(?s){message}"):
        rows(text)


def test_a_row_that_no_rule_names() -> None:
    with pytest.raises(PlanError, match=r"plan\.yaml:1:10: no rule names an axis `experts`"):
        check_known(rows("experts: ep"), ["ffn", "heads"])
