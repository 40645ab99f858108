"""Folders of rules: which are read, in what order, and what is refused."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fxpar import rulebook
from fxpar.errors import FxparError, PlanError, RuleError, Violations
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook

FILES = f"files of rules are {', '.join(rulebook.KNOWN)}"
LINEAR = '- op: aten.linear.default\n  equation: "n i, o i, o? -> n o"\n  sum: [i]\n  terms: [bias]\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def error_of(load: object) -> str:
    with pytest.raises(FxparError) as caught:
        load()  # type: ignore[operator]
    return str(caught.value)


def test_the_built_in_rules() -> None:
    book = Rulebook.load()
    assert str(book.ops["aten.linear.default"].place).startswith("rules/ops/contraction.yaml:")
    assert {"heads", "vocab", "sequence", "batch", "ffn"} <= set(book.axes)
    table = book.table(Plan())
    assert [*table] == ["heads", "ffn", "vocab", "sequence", "batch"]
    assert table["sequence"].over == ("cp", "tp")
    assert table["sequence"].optional == {"tp"}
    assert str(table["heads"].place) == "rules/splits/default.yaml:2:8"


def test_without_sequence_parallelism() -> None:
    table = Rulebook.load().table(Plan(sequence_parallel=False))
    assert table["sequence"].over == ("cp",)
    assert table["sequence"].source == "rules/splits/whole_sequence.yaml:5"


def test_rows_of_a_plan_keep_the_order_of_known_axes(here: Path) -> None:
    text = 'splits:\n  hidden: tp\n  vocab: null\n  heads: [cp, "tp?"]\n'
    plan = Plan.from_yaml(write(here, {"plan.yaml": text}).joinpath("plan.yaml").relative_to(here))
    table = Rulebook.load().table(plan)
    assert [*table] == ["heads", "ffn", "vocab", "sequence", "batch", "hidden"]
    assert table["vocab"].over == ()
    assert table["heads"].optional == {"tp"}
    assert {axis: str(row.place) for axis, row in table.items()} == {
        "heads": "plan.yaml:4:10",
        "ffn": "rules/splits/default.yaml:3:6",
        "vocab": "plan.yaml:3:10",
        "sequence": "rules/splits/default.yaml:5:11",
        "batch": "rules/splits/default.yaml:6:8",
        "hidden": "plan.yaml:2:11",
    }


def test_a_plan_written_out_means_the_same(here: Path) -> None:
    book = Rulebook.load()
    for plan in (Plan(), Plan(sequence_parallel=False, splits={"vocab": None, "hidden": "tp?"})):
        out = book.written_out(plan)
        again = Plan.from_yaml(write(here, {"out.yaml": out.to_yaml()}) / "out.yaml")
        assert again == out
        rows = [[(r.axis, r.over, r.optional) for r in book.table(p).values()] for p in (plan, out, again)]
        assert rows[0] == rows[1] == rows[2]


def test_unknown_axes_are_said_at_once() -> None:
    book = Rulebook.load()
    allowed = ", ".join(sorted(book.axes))
    plan = Plan(splits={"head": "tp", "heads": "tp"}).override(["splits.zebra=tp"])
    with pytest.raises(Violations) as caught:
        book.table(plan)
    assert str(caught.value) == (
        f"Plan(splits=...): no rule names an axis `head`\n  did you mean `heads`?\n  allowed: {allowed}\n"
        f"--set splits.zebra=tp: no rule names an axis `zebra`\n  allowed: {allowed}"
    )
    assert isinstance(caught.value, PlanError)


def test_later_folders_replace_and_extend(here: Path) -> None:
    axes = "- axis: width\n  seen: linear.in\n"
    write(
        here / "one",
        {"ops/mine.yaml": LINEAR, "splits/default.yaml": "heads: cp\nwidth: tp\n", "axes.yaml": axes},
    )
    write(here / "two", {"splits/default.yaml": "heads: dp\n"})
    book = Rulebook.load(["two"], Plan(rules=["one"]))
    assert book.folders[1:] == (Path("one"), Path("two"))
    assert str(book.ops["aten.linear.default"].place) == "one/ops/mine.yaml:1:7"
    assert book.axes[0] == "width"
    table = book.table(Plan())
    assert (table["heads"].over, str(table["heads"].place)) == (("dp",), "two/splits/default.yaml:1:8")
    assert [*table][-1] == "width"


def test_wrong_folders_are_said_at_once(here: Path) -> None:
    write(here / "empty", {"readme.txt": "nothing"})
    write(here / "typo", {"ops/a.yaml": "[]", "axis.yaml": "", "op/b.yml": ""})
    plan = Plan.from_yaml(
        write(here, {"plan.yaml": "rules:\n  - nowhere\n"}).joinpath("plan.yaml").relative_to(here)
    )
    assert error_of(lambda: Rulebook.load(["empty", "typo"], plan)) == (
        "plan.yaml:2:5: there is no folder of rules `nowhere`\n"
        "  2 |   - nowhere\n"
        "    |     ^\n"
        f"folder `empty` has no file of rules\n  {FILES}\n"
        f"`axis.yaml` in `typo` is no file of rules\n  {FILES}\n"
        f"`op/b.yml` in `typo` is no file of rules\n  {FILES}"
    )


def test_a_row_of_a_folder_whose_axis_is_unknown(here: Path) -> None:
    write(here / "mine", {"splits/default.yaml": "heds: tp\n"})
    book = Rulebook.load(["mine"])
    with pytest.raises(RuleError, match=r"^mine/splits/default.yaml:1:1: unknown key `heds`"):
        book.table(Plan())


@pytest.fixture
def installed(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of the group that are found, and two modules that they may name."""
    write(here / "rulepack", {"__init__.py": "", "splits/default.yaml": "heads: dp\n"})
    write(here, {"rulepath.py": "from pathlib import Path\nRULES = Path('given')\nNUMBER = 3\n"})
    write(here / "given", {"splits/default.yaml": "heads: cp\n"})
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    found: list[EntryPoint] = []
    monkeypatch.setattr(rulebook, "entry_points", lambda group: found if group == "fxpar.rules" else [])
    return found


def test_installed_packages_come_before_named_folders(here: Path, installed: list[EntryPoint]) -> None:
    installed += [
        EntryPoint("b", "rulepath:RULES", "fxpar.rules"),
        EntryPoint("a", "rulepack", "fxpar.rules"),
    ]
    write(here / "mine", {"axes.yaml": "[]"})
    book = Rulebook.load(["mine"])
    assert book.folders[1:] == (here / "rulepack", Path("given"), Path("mine"))
    assert book.table(Plan())["heads"].over == ("cp",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("rulegone", "entry point `a` of `fxpar.rules` cannot be loaded: No module named 'rulegone'"),
        (
            "rulepath:NUMBER",
            "entry point `a` of `fxpar.rules` is `rulepath:NUMBER`, which is no folder\n"
            "  it may be a package with the rules in its folder, or an attribute that is the folder's path",
        ),
    ],
)
def test_entry_points_that_are_no_folder(installed: list[EntryPoint], value: str, text: str) -> None:
    installed.append(EntryPoint("a", value, "fxpar.rules"))
    assert error_of(Rulebook.load) == text
