"""The command line: what goes to stdout, what to stderr, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from fxpar.cli import run

MODEL = """\
import torch
from torch import nn

print("made by the model's file")

def build():
    print("made by the model")
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6))

example_inputs = (torch.zeros(4, 6),)
"""
PLAN = "dp: 2\ntp: 5\nsplits:\n  ffn: tp\n"
LINEAR = '- op: aten.linear.default\n  equation: "... i, o i, o? -> ... o"\n'


@dataclass(frozen=True)
class Result:
    """What a command gave out."""

    status: int
    out: str
    err: str


@pytest.fixture
def fxpar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Return a function that runs a command in a folder with `model.py` and `plan.yaml`."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    Path("plan.yaml").write_text(PLAN)

    def call(*arguments: str) -> Result:
        status = run(arguments)
        return Result(status, *capsys.readouterr())

    return call


def test_help_answers_without_torch() -> None:
    asked = [[], ["axes"], ["rules"], ["rules", "list"], ["rules", "test"], ["schedule"]]
    code = f"""
import sys
from fxpar.cli import run
for command in {asked}:
    assert run([*command, "--help"]) == 0
assert run(["--version"]) == 0
assert run(["axes", "--wrong"]) == 2
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for words in ("Usage: fxpar [OPTIONS]", "  axes ", "  rules ", "Usage: fxpar axes [OPTIONS] MODEL"):
        assert words in done.stdout
    assert done.stdout.count("Examples:\n    fxpar") == 4


def test_version(fxpar: Callable[..., Result]) -> None:
    assert fxpar("--version") == Result(0, f"fxpar, version {version('fxpar')}\n", "")


def test_used_wrongly(fxpar: Callable[..., Result]) -> None:
    assert fxpar("axs").err.endswith("Error: No such command 'axs'.\n")
    assert fxpar("axes").err.endswith("Error: Missing argument 'MODEL'.\n")
    assert fxpar("axes", "model.py", "--plan", "no.yaml").err.endswith(
        "Error: Invalid value for '--plan': File 'no.yaml' does not exist.\n"
    )
    assert [fxpar(*words).status for words in (["axs"], ["axes"], ["rules", "lst"], ["axes", "--no"])] == [
        2
    ] * 4


def test_errors_have_no_traceback(fxpar: Callable[..., Result]) -> None:
    assert fxpar("axes", "nowhere.py") == Result(
        2,
        "",
        "there is no file `nowhere.py`\n"
        "  a model is file.py, file.py:attribute, package.module:attribute, or a folder with a config.json\n",
    )


def test_a_file_that_cannot_be_written_has_no_traceback(fxpar: Callable[..., Result]) -> None:
    name = "n" * 300
    done = fxpar("partition", "model.py", "--dp", "2", "-o", name)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith(f"{name}: File name too long\n")


def test_axes_prints_the_table_and_nothing_else(fxpar: Callable[..., Result]) -> None:
    done = fxpar("axes", "model.py:build")
    head, *rows = done.out.splitlines()
    assert done.status == 0
    assert head.split()[:3] == ["axis", "size", "instances"]
    assert [row.split()[:2] for row in rows[:2]] == [["batch", "4"], ["ffn", "10"]]
    assert rows[2:] == ["", "parameters on no axis", "  2.bias  [6]  24 B"]
    assert "made by the model\n" in done.err
    assert "made by the model's file\n" in done.err


def test_axes_as_json(fxpar: Callable[..., Result]) -> None:
    done = fxpar("axes", "model.py:build", "--input", "input:float32[8,6]", "--json")
    data = json.loads(done.out)
    assert {row["axis"]: row["sizes"] for row in data["axes"]} == {"batch": [8], "ffn": [10]}
    assert data["dims"]["0.weight"] == ["ffn", "6"]


def test_axes_with_a_plan(fxpar: Callable[..., Result]) -> None:
    lines = fxpar("axes", "model.py:build", "--plan", "plan.yaml").out.splitlines()
    assert "plan" in lines[0].split()
    assert [word for line in lines for word in line.split() if "=" in word] == ["dp=2", "tp=5"]


def test_a_wrong_plan(fxpar: Callable[..., Result]) -> None:
    Path("plan.yaml").write_text("tq: 2\n")
    done = fxpar("axes", "model.py:build", "--plan", "plan.yaml")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("plan.yaml:1:1: unknown key `tq`\n  1 | tq: 2\n    | ^\n")


def test_rules_are_listed_with_their_places(fxpar: Callable[..., Result]) -> None:
    done = fxpar("rules", "list")
    lines = [line.split(maxsplit=2) for line in done.out.splitlines()]
    titles = [line[0] for line in lines if len(line) == 1]
    assert titles == ["ops", "axes", "splits/default", "splits/whole_sequence"]
    assert [
        "aten.linear.default",
        "rules/ops/contraction.yaml:2",
        "equation: ... i, o i, o? -> ... o",
    ] in lines
    assert ["sequence", "rules/splits/default.yaml:5", "over: cp tp?"] in lines


def test_rules_as_json(fxpar: Callable[..., Result]) -> None:
    Path("mine/ops").mkdir(parents=True)
    Path("mine/ops/a.yaml").write_text(LINEAR)
    data = json.loads(fxpar("rules", "list", "--rules", "mine", "--json").out)
    assert {
        "op": "aten.linear.default",
        "rule": "mine/ops/a.yaml:1",
        "equation": "... i, o i, o? -> ... o",
    } in data["ops"]
    assert {"axis": "sequence", "rule": "rules/splits/default.yaml:5", "over": ["cp", "tp?"]} in data[
        "splits/default"
    ]
    heads = next(entry for entry in data["axes"] if entry["axis"] == "heads")
    assert heads["seen"] == ["attention.heads.major"]


def test_rules_are_proved(fxpar: Callable[..., Result]) -> None:
    done = fxpar("rules", "test", "aten.linear.*", "aten.t.default")
    assert done.status == 0
    first, second, last = done.out.splitlines()
    assert first.startswith("ok aten.linear.default: ..., i, o; ")
    assert second.startswith("ok aten.t.default: ")
    assert last == "2 of 2 rules proved"


def test_a_rule_that_is_wrong(fxpar: Callable[..., Result]) -> None:
    Path("mine/ops").mkdir(parents=True)
    Path("mine/ops/a.yaml").write_text(LINEAR + '  proof: ["f[4,6], f[8,6]"]\n')
    done = fxpar("rules", "test", "--rules", "mine", "aten.linear.default", "aten.t.default")
    first, _, proof, *_, last = done.out.splitlines()
    assert done.status == 1
    assert first == "FAILED aten.linear.default"
    assert proof == "    1 | - op: aten.linear.default"
    assert last == "1 of 2 rules proved"
    assert "  mine/ops/a.yaml:1:7: `aten.linear.default` split on role `i` " in done.out
    data = json.loads(fxpar("rules", "test", "--rules", "mine", "aten.linear.default", "--json").out)
    assert [(entry["op"], entry["rule"], entry["ok"]) for entry in data] == [
        ("aten.linear.default", "mine/ops/a.yaml:1", False)
    ]


def test_a_rule_without_samples(fxpar: Callable[..., Result]) -> None:
    Path("mine/ops").mkdir(parents=True)
    Path("mine/ops/a.yaml").write_text(LINEAR)
    done = fxpar("rules", "test", "--rules", "mine", "aten.linear.default")
    assert done == Result(
        1,
        "FAILED aten.linear.default\n"
        "  mine/ops/a.yaml:1:7: no sample splits `aten.linear.default` on role `...`\n"
        "    1 | - op: aten.linear.default\n"
        "      |       ^\n"
        "    add one to `proof`\n"
        "0 of 1 rules proved\n",
        "",
    )


def test_a_pattern_that_fits_no_rule(fxpar: Callable[..., Result]) -> None:
    assert fxpar("rules", "test", "aten.linaer.default") == Result(
        2, "", "no op with a rule is `aten.linaer.default`\n  did you mean `aten.linear.default`?\n"
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-c", "from fxpar.cli import main; main()", "rules", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert process.communicate()[1] == ""
    assert process.returncode == 0
