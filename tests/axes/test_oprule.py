from __future__ import annotations

from pathlib import Path

import pytest

from fxpar import yamlfile
from fxpar.axes.links import FREE, SUM, WHOLE
from fxpar.axes.oprule import OpRule, load, read
from fxpar.errors import RuleError

LINEAR = '- op: aten.linear.default\n  equation: "... i, o i, o? -> ... o"\n'


def rules(text: str) -> list[OpRule]:
    entries = yamlfile.parse(text, "rules/ops/x.yaml", RuleError).list()
    return [rule for entry in entries for rule in read(entry)]


def folder(path: Path, **files: str) -> Path:
    (path / "ops").mkdir(parents=True)
    for name, text in files.items():
        (path / "ops" / f"{name}.yaml").write_text(text)
    return path


def test_a_rule() -> None:
    (rule,) = rules(LINEAR + "  sum: [i]\n  terms: [bias]\n  seen: {o: linear.out}\n  linear: true\n")
    assert (rule.op, rule.source, rule.terms, rule.linear) == (
        "aten.linear.default",
        "rules/ops/x.yaml:1",
        ("bias",),
        True,
    )
    assert [rule.role(name).meaning for name in "io"] == [SUM, FREE]
    assert rule.role("o").seen == "linear.out"
    assert rule.splittable() == {"...", "i", "o"}


def test_one_entry_for_several_ops() -> None:
    first, second = rules("- op: [aten.sort.default, aten.topk.default]\n  shape: along\n")
    assert (first.op, second.op, second.place.column) == ("aten.sort.default", "aten.topk.default", 27)
    assert first.meaning == WHOLE


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            LINEAR + "  sums: [i]\n",
            "rules/ops/x.yaml:3:3: unknown key `sums`\n"
            "  3 |   sums: [i]\n"
            "    |   ^\n"
            "  did you mean `sum`?\n"
            "  allowed: axes, equation, factors, kind, linear, lower, meaning, op, proof, seen, shape, sizes, sum, "
            "terms, whole",
        ),
        (
            LINEAR + "  sum: [j]\n",
            "rules/ops/x.yaml:3:9: role `j` stands not in the equation\n"
            "  3 |   sum: [j]\n"
            "    |         ^\n"
            "  allowed: ..., i, o",
        ),
        (
            LINEAR + "  lower: {v: embedding}\n",
            "rules/ops/x.yaml:3:10: role `v` stands not in the equation\n"
            "  3 |   lower: {v: embedding}\n"
            "    |          ^\n"
            "  allowed: ..., i, o",
        ),
        (
            '- op: aten.neg.default\n  equation: "a -> b"\n',
            "rules/ops/x.yaml:2:13: `a -> b`: output role `b` stands in no operand\n"
            '  2 |   equation: "a -> b"\n'
            "    |             ^",
        ),
        (
            "- op: aten.neg.default\n",
            "rules/ops/x.yaml:1:3: a rule has either `equation` or `shape`\n"
            "  1 | - op: aten.neg.default\n"
            "    |   ^",
        ),
        (
            "- op: aten.cat.default\n  shape: cats\n",
            None,
        ),
        (
            "- shape: cat\n",
            "rules/ops/x.yaml:1:3: key `op` is missing\n  1 | - shape: cat\n    |   ^",
        ),
    ],
)
def test_wrong_rules(text: str, wanted: str | None) -> None:
    with pytest.raises(RuleError) as error:
        rules(text)
    if wanted is None:
        assert str(error.value).startswith("rules/ops/x.yaml:2:10: unknown value `cats`\n")
        assert "\n  did you mean `cat`?\n" in str(error.value)
    else:
        assert str(error.value) == wanted


def test_two_rules_for_one_op(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine", a=LINEAR, b=LINEAR)
    with pytest.raises(RuleError) as error:
        load([path])
    assert str(error.value) == (
        "mine/ops/b.yaml:1:7: `aten.linear.default` has a rule already, at mine/ops/a.yaml:1:7\n"
        "  1 | - op: aten.linear.default\n"
        "    |       ^"
    )


def test_later_folders_replace_rules(tmp_path: Path) -> None:
    first = folder(tmp_path / "one", a=LINEAR, b="- op: aten.cat.default\n  shape: cat\n")
    second = folder(tmp_path / "two", a="- op: aten.linear.default\n  shape: whole\n")
    found = load([first, second])
    assert {op: rule.source for op, rule in found.items()} == {
        "aten.linear.default": "two/ops/a.yaml:1",
        "aten.cat.default": "one/ops/b.yaml:1",
    }
