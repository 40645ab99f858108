"""Plans: what they may say, where they say it, and the exact text of every error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxpar.errors import PlanError, Violations
from fxpar.plan import Plan
from fxpar.schedule import SCHEDULES

KEYS = "cp, cut, dp, dynamic, ep, microbatches, opaque, pp, rules, schedule, seed, sequence_parallel, splits, tp, vpp"
PATHS = KEYS.replace("cut,", "cut, cut.at, cut.layers,").replace("splits,", "splits, splits.AXIS,")
DEFAULTS = """\
tp: 1
pp: 1
dp: 1
cp: 1
ep: 1
vpp: 1
sequence_parallel: true
schedule: null
microbatches: null
cut: null
splits: null
rules: null
opaque: null
seed: 0
dynamic: null
"""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that reads a plan from a text, as `plan.yaml`."""
    monkeypatch.chdir(tmp_path)

    def read(text: str) -> Plan:
        Path("plan.yaml").write_text(text)
        return Plan.from_yaml("plan.yaml")

    return read


def test_every_default_is_written_out(read: Any) -> None:
    assert Plan().to_yaml() == DEFAULTS
    assert read(DEFAULTS) == read("") == Plan()


def test_a_plan_is_read_back(read: Any) -> None:
    plan = Plan(
        tp=2,
        pp=2,
        sequence_parallel=False,
        schedule="gpipe",
        microbatches=4,
        cut={"at": ["model.layers.1"]},
        splits={"heads": "tp~", "sequence": ["cp", "tp?"], "vocab": None, "ffn": []},
        rules=[Path("mine")],
        seed=3,
    )
    assert read(plan.to_yaml()) == plan
    assert read(plan.to_yaml()).to_yaml() == plan.to_yaml()
    assert plan.splits == {"heads": "tp~", "sequence": ["cp", "tp?"], "vocab": None, "ffn": None}
    assert plan.cut_at == ["model.layers.1"]
    assert plan.rules == ["mine"]


def test_one_word_is_a_list_of_one() -> None:
    assert Plan(cut={"at": "a.b"}) == Plan(cut={"at": ["a.b"]})
    assert Plan(rules="mine") == Plan(rules=["mine"])
    assert Plan(splits={"heads": ["tp"]}) == Plan(splits={"heads": "tp"})
    assert Plan(splits={}, rules=[]) == Plan()


def test_the_mesh_has_all_dims_outermost_first() -> None:
    mesh = Plan(tp=2, pp=3, dp=4).mesh
    assert list(mesh.sizes.items()) == [("pp", 3), ("dp", 4), ("ep", 1), ("cp", 1), ("tp", 2)]


WRONG = {
    "not positive": ({"tp": 0}, "Plan(tp=...): wants an integer of at least 1, has 0"),
    "a fraction": ({"dp": 2.0}, "Plan(dp=...): wants an integer, has the number 2.0"),
    "a flag as a number": ({"cp": True}, "Plan(cp=...): wants an integer, has true"),
    "a number as a flag": (
        {"sequence_parallel": 1},
        "Plan(sequence_parallel=...): wants true or false, has the number 1",
    ),
    "no schedule": (
        {"schedule": "1f2b"},
        "Plan(schedule=...): unknown value `1f2b`\n  did you mean `1f1b`?\n  allowed: "
        + ", ".join(sorted(SCHEDULES)),
    ),
    "virtual stages of one rank": (
        {"vpp": 2},
        "Plan(vpp=...): vpp = 2 stages a rank need several ranks along pp\n  --pp 2, or leave vpp at 1",
    ),
    "a schedule of one stage a rank": (
        {"pp": 2, "vpp": 2, "schedule": "1f1b"},
        "Plan(schedule=...): schedule 1f1b wants 1 stage a rank, and vpp is 2\n  vpp = 1 would do\n"
        "  with vpp = 2: looped-bfs, interleaved-1f1b, interleaved-zero-bubble, zb-v, dualpipe-v",
    ),
    "a schedule of several": (
        {"pp": 2, "schedule": "looped-bfs"},
        "Plan(schedule=...): schedule looped-bfs wants at least 2 stages a rank, and vpp is 1\n  vpp = 2 would do\n"
        "  with vpp = 1: gpipe, 1f1b, zero-bubble",
    ),
    "experts": ({"ep": 4}, "Plan(ep=...): expert parallelism, ep = 4 is not built yet\n  leave it at 1"),
    "no microbatch": ({"microbatches": 0}, "Plan(microbatches=...): wants an integer of at least 1, has 0"),
    "a cut nowhere": (
        {"cut": {}},
        "Plan(cut=...): wants `at` or `layers`\n  `cut: balanced` leaves the choice to fxpar",
    ),
    "a cut in two ways": (
        {"cut": {"at": ["a"], "layers": [1, 1]}},
        "Plan(cut=...): `at` and `layers` exclude each other\n  `cut: balanced` leaves the choice to fxpar",
    ),
    "no way to cut": ({"cut": "even"}, "Plan(cut=...): unknown value `even`\n  allowed: balanced"),
    "a module as a number of layers": (
        {"cut": {"layers": [2, "a"]}},
        "Plan(cut=...): wants an integer, has the text `a`",
    ),
    "fewer layers than none": (
        {"cut": {"layers": [2, -1]}},
        "Plan(cut=...): wants an integer of at least 0, has -1",
    ),
    "no number of layers": (
        {"cut": {"layers": []}},
        "Plan(cut=...): wants a number of layers for each stage, has none",
    ),
    "one number of layers": ({"cut": {"layers": 6}}, "Plan(cut=...): wants a list, has the number 6"),
    "no mapping of cuts": ({"cut": ["a"]}, "Plan(cut=...): wants a mapping, has a list"),
    "a number as a module": (
        {"cut": {"at": [1]}},
        "Plan(cut=...): wants a text, has the number 1\n  quotes make it a text",
    ),
    "no mapping of splits": ({"splits": ["heads"]}, "Plan(splits=...): wants a mapping, has a list"),
    "stages as a split": (
        {"splits": {"heads": "pp"}},
        "Plan(splits=...): `pp` splits no axis: each of its ranks holds a stage\n  allowed: cp, dp, ep, mb, tp",
    ),
    "a folder that is a number": (
        {"rules": [7]},
        "Plan(rules=...): wants a text, has the number 7\n  quotes make it a text",
    ),
    "a negative seed": ({"seed": -1}, "Plan(seed=...): wants an integer of at least 0, has -1"),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**arguments)
    assert str(caught.value) == text


def test_everything_wrong_in_a_file_is_said_at_once(read: Any) -> None:
    text = "tp: 0\ntpp: 2\nsplits:\n  heads: tpp\n  sequence: [cp, cp]\nep: 2\ncut: {art: [a]}\n"
    with pytest.raises(Violations) as caught:
        read(text)
    assert (
        str(caught.value)
        == f"""\
plan.yaml:1:5: wants an integer of at least 1, has 0
  1 | tp: 0
    |     ^
plan.yaml:2:1: unknown key `tpp`
  2 | tpp: 2
    | ^
  did you mean `tp`?
  allowed: {KEYS}
plan.yaml:4:10: `tpp` is no mesh dim
  4 |   heads: tpp
    |          ^
  did you mean `tp`?
  allowed: cp, dp, ep, mb, tp
plan.yaml:5:18: `cp` stands twice in the row of `sequence`
  5 |   sequence: [cp, cp]
    |                  ^
plan.yaml:6:5: expert parallelism, ep = 2 is not built yet
  6 | ep: 2
    |     ^
  leave it at 1
plan.yaml:7:7: unknown key `art`
  7 | cut: {{art: [a]}}
    |       ^
  did you mean `at`?
  allowed: at, layers"""
    )


def test_a_file_that_is_no_plan(read: Any) -> None:
    with pytest.raises(PlanError, match=r"^plan.yaml:1:1: wants a mapping, has a list"):
        read("- tp\n")
    with pytest.raises(PlanError, match=r"^nowhere.yaml: cannot be read: No such file or directory$"):
        Plan.from_yaml("nowhere.yaml")


def test_options_replace_settings(read: Any) -> None:
    plan = read("tp: 2\nsplits:\n  heads: tp\n  ffn: tp\n")
    changed = plan.override(
        ["tp=4", "splits.heads=null", 'splits.sequence=[cp, "tp?"]', "cut.at=[a, b]", "schedule=gpipe"]
    )
    assert changed == Plan(
        tp=4,
        splits={"heads": None, "ffn": "tp", "sequence": ["cp", "tp?"]},
        cut={"at": ["a", "b"]},
        schedule="gpipe",
    )
    assert plan.tp == 2
    assert changed.override(["splits="]).splits is None
    assert {
        path: str(changed.place(path)) for path in ("tp", "splits.heads", "splits.ffn", "cut.at", "pp")
    } == {
        "tp": "--set tp=4",
        "splits.heads": "--set splits.heads=null",
        "splits.ffn": "plan.yaml:4:8",
        "cut.at": "--set cut.at=[a, b]",
        "pp": "Plan(pp=...)",
    }


def test_the_ways_to_cut_replace_each_other(read: Any) -> None:
    plan = read("pp: 2\ncut:\n  at: [a]\n")
    counted = plan.override(["cut.layers=[2, 0]"])
    assert counted == Plan(pp=2, cut={"layers": [2, 0]})
    assert counted.cut_at == [2, 0]
    assert counted.override(["cut=balanced"]) == Plan(pp=2) == Plan(pp=2, cut="balanced")
    assert Plan(pp=2).cut_at == ()
    assert "cut:\n  layers: [2, 0]\n" in counted.to_yaml()
    places = [str(each.place("cut.at")) for each in (plan, counted, read("cut:\n  layers: [1, 2]\n"))]
    assert places == ["plan.yaml:3:7", "--set cut.layers=[2, 0]", "plan.yaml:2:11"]


def test_wrong_options_are_said_at_once() -> None:
    with pytest.raises(Violations) as caught:
        Plan().override(["tp=[", "splits.heads=tpp", "cut.ta=a", "tpp=3", "tp.x=3", "pp"])
    assert (
        str(caught.value)
        == f"""\
--set tp=[: expected the node content, but found '<stream end>'
--set splits.heads=tpp: `tpp` is no mesh dim
  did you mean `tp`?
  allowed: cp, dp, ep, mb, tp
--set cut.ta=a: unknown key `ta`
  allowed: at, layers
--set tpp=3: unknown key `tpp`
  did you mean `tp`?
  allowed: {PATHS}
--set tp.x=3: unknown key `tp.x`
  did you mean `tp`?
  allowed: {PATHS}
--set pp: wants KEY=VALUE"""
    )


@pytest.mark.parametrize(
    ("batch", "pp", "dp", "number"),
    [
        (8, 1, 1, 1),
        (8, 2, 1, 4),
        (2, 2, 1, 2),
        (7, 2, 1, 7),
        (1, 4, 1, 1),
        (8, 4, 2, 4),
        (9, 2, 1, 3),
        (0, 2, 1, 1),
    ],
)
def test_microbatches_divide_the_batch_of_a_rank(batch: int, pp: int, dp: int, number: int) -> None:
    assert Plan(pp=pp, dp=dp).resolve(batch).microbatches == number


def test_given_microbatches_have_to_divide() -> None:
    assert Plan(microbatches=4).resolve(8).microbatches == 4
    with pytest.raises(PlanError) as caught:
        Plan(pp=2, dp=2).override(["microbatches=3"]).resolve(8)
    assert str(caught.value) == (
        "--set microbatches=3: 3 microbatches do not divide a batch of 4 samples on a rank\n"
        "  microbatches may be 1, 2 or 4"
    )
