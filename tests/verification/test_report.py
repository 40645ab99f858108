"""What a report says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from fxpar.verification.compare import Count, Findings
from fxpar.verification.report import Report, Row

NORM = Row(
    name="layers.0.norm.weight",
    kind="parameter",
    gradient=1e-16,
    update=3e-17,
    rank=2,
    shape=(64,),
    local_shape=(64,),
    dims=("hidden",),
    placement="whole",
    reduce=("tp",),
    stages=(0,),
    rule="no row of the table splits it",
    source="model.py:7",
)
UP = replace(
    NORM,
    name="layers.0.up.weight",
    gradient=2e-15,
    rank=1,
    shape=(256, 64),
    local_shape=(128, 64),
    dims=("ffn", "hidden"),
    placement="Shard(0, ffn) over tp",
    reduce=(),
    rule="rules/splits/default.yaml:3",
)
REPORT = Report(
    mesh={"pp": 2, "dp": 1, "tp": 2},
    dtype="float64",
    tolerance=1e-9,
    simulated=True,
    loss_error=0.0,
    norm_error=2e-16,
    outputs={"loss": 0.0, "logits": 4e-16},
    rows=(NORM, UP),
    sharded_fraction=0.9935,
    draws=0,
    seed=0,
    collectives=(
        Count("all_gather", "tp", "backward", 20, 40960.0),
        Count("all_gather", "tp", "forward", 20, 40960.0),
        Count("all_reduce", "tp", "step", 1, 256.0),
    ),
)
SPOILT = replace(
    REPORT, rows=(replace(NORM, gradient=0.5, update=2e-4), replace(UP, gradient=0.7)), norm_error=0.1
)


@pytest.mark.parametrize(("name", "report"), [("right", REPORT), ("wrong", SPOILT)])
def test_text(name: str, report: Report, golden: Callable[[str, str], None]) -> None:
    golden(f"verification_{name}.txt", report.text() + "\n")


def test_a_report_that_is_right() -> None:
    assert REPORT.ok
    assert REPORT.ranks == 4
    assert REPORT.first_wrong is None
    assert REPORT.worst_parameter == UP.name
    assert REPORT.gradient_error == 2e-15
    assert REPORT.parameter_error == 3e-17
    assert REPORT.output_error == 4e-16
    assert REPORT.calls("all_gather") == 40
    assert REPORT.calls(group="tp", phase="forward") == 20


def test_the_first_that_differs_is_not_the_worst() -> None:
    assert not SPOILT.ok
    assert SPOILT.first_wrong.name == NORM.name
    assert SPOILT.worst_parameter == UP.name


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss_error": 1e-8},
        {"norm_error": 1e-8},
        {"outputs": {"logits": 1e-8}},
        {"rows": (replace(NORM, gradient=1e-8),)},
        {"rows": (replace(NORM, gradient=None, update=1e-8),)},
        {"loss_error": math.inf},
        {"loss_error": math.nan},
    ],
)
def test_any_error_is_wrong(wrong: dict[str, object]) -> None:
    assert not replace(REPORT, **wrong).ok


def test_json() -> None:
    lost = replace(SPOILT, rows=(replace(NORM, gradient=math.inf, update=math.inf, rank=None), UP))
    data = json.loads(lost.to_json())
    assert data["ok"] is False
    assert data["first_wrong"] == {"name": NORM.name, "rule": NORM.rule}
    assert data["gradient_error"] == "inf"
    assert data["rows"][1]["gradient"] == 2e-15
    assert data["collectives"][0]["calls"] == 20
    assert "no rank holds it" in lost.text()


def test_findings_travel_as_text() -> None:
    found = Findings(3, 0.0, math.inf, {"loss": 1e-16}, {"w": 0.5}, {"w": 0.1}, REPORT.collectives)
    assert Findings.from_json(found.to_json()) == found
