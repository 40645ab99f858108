"""The command schedule: what it prints and writes, where its times are from, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import fxpar
from fxpar.cli import run
from fxpar.pipeline.spec import StageCosts, StageSpec
from fxpar.report import costs

ROOT = Path(__file__).parents[1]
MODEL = str(ROOT / "examples" / "nanogpt.py")
ONE_F_ONE_B = ("--pp", "4", "--schedule", "1f1b", "--microbatches", "8")

TABLE = """\
1f1b: pp 4, 8 microbatches
a run takes F 1, I 1, W 1, a transfer 0 units; B is I and W

rank  stages  work  idle  within  idle/work  idle/makespan  live
0     0       24    9     9       37.5 %     27.3 %         4
1     1       24    9     6       37.5 %     27.3 %         3
2     2       24    9     3       37.5 %     27.3 %         2
3     3       24    9     0       37.5 %     27.3 %         1
all           96    36            37.5 %     27.3 %         4
makespan 33 units
"""


@dataclass(frozen=True)
class Result:
    """What a command gave out."""

    status: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        assert self.status == 0, self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Return a function that runs the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        status = run(["schedule", *arguments])
        return Result(status, *capsys.readouterr())

    return call


def test_without_a_plan_nothing_is_written(schedule: Callable[..., Result]) -> None:
    done = schedule(*ONE_F_ONE_B)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{TABLE}\nnotes\n  no file is written without a folder: give one with -o\n"
    assert schedule(*ONE_F_ONE_B, "--dry-run", "-o", "out").out == TABLE
    assert list(Path().iterdir()) == []


def test_files_are_written_beside_the_plan_or_where_one_says(schedule: Callable[..., Result]) -> None:
    Path("plans").mkdir()
    Path("plans/plan.yaml").write_text("pp: 4\nschedule: 1f1b\nmicrobatches: 8\n")
    done = schedule("plans/plan.yaml")
    assert done.out.startswith(TABLE)
    assert "\n  timeline.json  " in done.out
    names = ["plan.yaml", "timeline.json", "timeline.svg"]
    assert sorted(path.name for path in Path("plans").iterdir()) == names
    assert schedule("plans", "-o", "elsewhere/new").out == done.out
    for name in names[1:]:
        assert Path("elsewhere/new", name).read_bytes() == Path("plans", name).read_bytes()
    entries = json.loads(Path("plans/timeline.json").read_text())["traceEvents"]
    assert max(entry["ts"] + entry["dur"] for entry in entries if entry["ph"] == "X") == 33e3
    assert ">1f1b: pp 4, 8 microbatches</text>" in Path("plans/timeline.svg").read_text()


def test_options_go_before_the_plan(schedule: Callable[..., Result]) -> None:
    Path("plan.yaml").write_text("pp: 4\nschedule: 1f1b\nmicrobatches: 8\ntp: 2\n")
    facts = schedule("plan.yaml", "--vpp", "2", "--schedule", "zb-v", "--json", "--dry-run").facts
    assert (facts["schedule"], facts["pp"], facts["vpp"], facts["microbatches"]) == ("zb-v", 4, 2, 8)
    assert [rank["stages"] for rank in facts["ranks"]] == [[0, 7], [1, 6], [2, 5], [3, 4]]
    assert [rank["idle_within"] for rank in facts["ranks"]] == [0] * 4


def test_what_a_plan_leaves_open(schedule: Callable[..., Result]) -> None:
    found = [schedule("--pp", "4", *more, "--json").facts for more in ((), ("--vpp", "3"))]
    assert [facts["schedule"] for facts in found] == ["1f1b", "interleaved-1f1b"]
    assert [facts["microbatches"] for facts in found] == [8, 8]


def test_all_figures_as_data(schedule: Callable[..., Result]) -> None:
    facts = schedule("--pp", "2", "--microbatches", "3", "--times", "1,0.5,2", "--json").facts
    figures = {"makespan": 14, "work": 21, "idle": 7, "idle_of_work": 1 / 3, "idle_of_makespan": 0.25}
    rank = {"makespan": 14, "work": 10.5, "idle": 3.5, "idle_of_work": 1 / 3, "idle_of_makespan": 0.25}
    times = {"forward": 1, "input": 0.5, "weight": 2}
    assert facts == {
        "schedule": "1f1b",
        "pp": 2,
        "vpp": 1,
        "microbatches": 3,
        "unit": "units",
        "transfer": 0,
        "stages": [{"stage": stage, "rank": stage, **times} for stage in (0, 1)],
        **figures,
        "live": 2,
        "ranks": [
            {"rank": 0, "stages": [0], **rank, "live": 2, "idle_within": 3.5},
            {"rank": 1, "stages": [1], **rank, "live": 1, "idle_within": 0},
        ],
        "compared": [],
        "notes": ["no file is written without a folder: give one with -o"],
        "files": {},
    }


def test_times_are_exact(schedule: Callable[..., Result]) -> None:
    """8 microbatches of 0.6, and on the way there and back through 4 ranks 3 of 0.6 and 6 transfers of 0.05."""
    times = ("--times", "0.1,0.2,0.3", "--transfer", "0.05")
    facts = schedule("--pp", "4", "--schedule", "gpipe", *times, "--json").facts
    assert facts["makespan"] == 6.9
    assert facts["ranks"][0]["work"] == 4.8


def test_pairs_of_dualpipe_v(schedule: Callable[..., Result]) -> None:
    pipeline = ("--pp", "4", "--vpp", "2", "--schedule", "dualpipe-v", "--microbatches", "8", "--json")
    together, apart = schedule(*pipeline).facts, schedule(*pipeline, "--apart").facts
    assert (together["ranks"][0]["idle"], together["ranks"][0]["work"]) == (6, 48)
    assert (apart["ranks"][0]["idle"], apart["ranks"][0]["work"]) == (3, 48)
    assert together["notes"][:2] == [
        "a forward and a backward run beside each other count as one, as long as both together",
        "one after the other (--apart), idle is 6.2 % of the work, 5.9 % of the makespan",
    ]
    assert len(apart["notes"]) == 1


def test_schedules_are_compared(schedule: Callable[..., Result]) -> None:
    done = schedule("--pp", "4", "--microbatches", "8", "--compare", "--dry-run")
    assert done.out == TABLE + (
        "\n"
        "schedule                 vpp  idle/work  idle/makespan  live\n"
        "gpipe                    1    37.5 %     27.3 %         8\n"
        "1f1b                     1    37.5 %     27.3 %         4\n"
        "looped-bfs               2    18.8 %     15.8 %         8\n"
        "interleaved-1f1b         2    18.8 %     15.8 %         5.5\n"
        "zero-bubble              1    12.5 %     11.1 %         4\n"
        "interleaved-zero-bubble  2    6.2 %      5.9 %          4\n"
        "zb-v                     2    6.2 %      5.9 %          4\n"
        "dualpipe-v               2    12.5 %     11.1 %         4.5\n"
    )


def test_several_stages_a_rank_are_compared_with_as_many(schedule: Callable[..., Result]) -> None:
    facts = schedule("--pp", "2", "--vpp", "3", "--compare", "--json", "--microbatches", "4").facts
    found = [(other["schedule"], other["vpp"]) for other in facts["compared"]]
    assert found == [("looped-bfs", 3), ("interleaved-1f1b", 3), ("interleaved-zero-bubble", 3)]


def test_one_rank(schedule: Callable[..., Result]) -> None:
    facts = schedule("--pp", "1", "--microbatches", "3", "--json").facts
    assert (facts["makespan"], facts["idle"], facts["live"]) == (9, 0, 1)


def costing(*stages: StageCosts) -> None:
    """Let the manifest in `out` say what its stages cost."""
    file = Path("out/manifest.json")
    data = json.loads(file.read_text())
    for entry, stage in zip(data["stages"], stages, strict=True):
        entry["costs"] = asdict(stage)
    file.write_text(json.dumps(data))


def test_a_partition_without_costs(schedule: Callable[..., Result]) -> None:
    fxpar.partition(MODEL, fxpar.Plan(pp=2, microbatches=2), out=Path("out"))
    costing(StageCosts(), StageCosts())
    facts = schedule("out", "--json").facts
    assert (facts["unit"], facts["microbatches"], facts["makespan"]) == ("units", 2, 9)
    assert facts["notes"] == [
        "every run takes one unit, not what the partition's stages cost: its manifest has no costs"
    ]
    assert set(facts["files"]) == {"timeline.json", "timeline.svg"}


def test_times_of_a_partition(schedule: Callable[..., Result]) -> None:
    fxpar.partition(MODEL, fxpar.Plan(pp=2, microbatches=2), out=Path("out"))
    costing(StageCosts(10**9, 10**9, 2 * 10**9, 1 << 20), StageCosts(2 * 10**9, 10**9, 10**9, 1 << 10))
    done = schedule("out", "--compare")
    assert "a run takes F 1 G to 2 G, I 1 G, W 1 G to 2 G, a transfer 0 flops; B is I and W\n" in done.out
    facts = schedule("out", "--json").facts
    assert facts["unit"] == "flops"
    assert [rank["work"] for rank in facts["ranks"]] == [8 * 10**9, 8 * 10**9]
    assert [rank["live_bytes"] for rank in facts["ranks"]] == [2 << 20, 1 << 10]
    assert facts["makespan"] == 12 * 10**9
    entries = json.loads(Path("out/timeline.json").read_text())["traceEvents"]
    assert max(entry["ts"] + entry["dur"] for entry in entries if entry["ph"] == "X") == 12e3
    given = schedule("out", "--times", "1,1,1", "--json", "--dry-run").facts
    assert (given["unit"], given["makespan"]) == ("units", 9)
    other = schedule("out", "--pp", "4", "--json", "--dry-run").facts
    assert other["notes"] == [
        "every run takes one unit, not what the partition's stages cost: it has 2 stages"
    ]


def test_stages_are_taken_by_their_numbers() -> None:
    first, second = (StageSpec(index, 2, costs=StageCosts(index + 1, 1, 1, 0)) for index in range(2))
    found = costs.of_partition([second, first], transfer=5)
    assert found is not None
    assert (list(found.times.forward), list(found.times.transfer)) == ([1, 2], [5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--pp", "0", "--times", "1,x", "--transfer", "-1"),
            "--pp 0: wants an integer of at least 1, has 0\n"
            "--times 1,x: `x` is no time of at least 0\n"
            "--times 1,x: wants 3 numbers, has 2\n"
            "  --times 1,1,1: of F, I and W\n"
            "--transfer -1: `-1` is no time of at least 0\n",
        ),
        (("--pp", "2", "--times", "1,0,1"), "--times 1,0,1: a run takes more than 0\n"),
        (("--pp", "2", "--times", "1,inf,nan"), "--times 1,inf,nan: `inf` is no time of at least 0\n"),
        (("--pp", "2", "--transfer", "1,2"), "--transfer 1,2: wants 1 number, has 2\n  --transfer 0.5\n"),
        (
            ("--pp", "4", "--schedule", "zb-v"),
            "--schedule zb-v: schedule zb-v wants 2 stages a rank, and vpp is 1\n"
            "  vpp = 2 would do\n"
            "  with vpp = 1: gpipe, 1f1b, zero-bubble\n",
        ),
        (
            ("--pp", "1000", "--microbatches", "100000"),
            "1000 stages and 100000 microbatches make 100000000 forward runs, and 1000000 are simulated at most\n"
            "  fewer microbatches show the same: what repeats is in the middle of a step\n",
        ),
        ((), "give a PLAN, or how many ranks a pipeline has with --pp\n"),
        (("none.yaml",), "Path 'none.yaml' does not exist.\n"),
        (("--pp", "2", "--schedule", "1f2b"), "'1f2b' is not one of 'gpipe', '1f1b', "),
    ],
)
def test_what_is_refused(schedule: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    done = schedule(*arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert list(Path().iterdir()) == []


def test_a_plan_that_is_wrong(schedule: Callable[..., Result]) -> None:
    Path("plan.yaml").write_text("pp: 4\nschedul: gpipe\n")
    done = schedule("plan.yaml", "--transfer", "soon")
    assert done.status == 2
    assert "plan.yaml:2:1: unknown key `schedul`\n" in done.err
    assert "--transfer soon: `soon` is no time of at least 0\n" in done.err
    assert schedule(".", "-o", "plan.yaml").status == 2


@pytest.mark.parametrize(
    ("picture", "arguments"),
    [("timeline", ONE_F_ONE_B), ("timeline_zb_v", ("--pp", "4", "--vpp", "2", "--schedule", "zb-v"))],
)
def test_pictures_of_the_documentation(
    schedule: Callable[..., Result], picture: str, arguments: tuple[str, ...]
) -> None:
    schedule(*arguments, "-o", ".")
    kept = (ROOT / "docs" / "pictures" / f"{picture}.svg").read_text(encoding="utf-8")
    assert Path("timeline.svg").read_text(encoding="utf-8") == kept
