"""Drawings of runs: as they were accepted, at all sizes well formed, and the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import Action, orders, pairs
from fxpar.pipeline.simulation import simulate
from fxpar.pipeline.times import Times
from fxpar.report.timeline import HUES, IDLE, timeline
from fxpar.schedule import SCHEDULES, places

SVG = "{http://www.w3.org/2000/svg}"


def drawn(schedule: str, ranks: int, virtual: int, microbatches: int, times: Times | None = None) -> str:
    planned = orders(schedule, ranks, virtual, microbatches)
    together = pairs(schedule, ranks, virtual, microbatches)
    times = times or Times.uniform(ranks * virtual)
    events = simulate(planned, places(schedule, ranks, virtual), times, together)
    return timeline(events, f"{schedule}: {ranks} ranks", "runs of a stage").text()


def boxes(text: str) -> list[dict[str, str]]:
    return [rect.attrib for rect in ElementTree.fromstring(text).iter(f"{SVG}rect")]


def words(text: str) -> list[str]:
    return [word.text or "" for word in ElementTree.fromstring(text).iter(f"{SVG}text")]


def test_a_small_one(golden: Callable[[str, str], None]) -> None:
    golden("timeline.svg", drawn("1f1b", 2, 1, 3))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_run_has_its_box_inside_the_row(schedule: str) -> None:
    virtual = SCHEDULES[schedule].least
    text = drawn(schedule, 4, virtual, 8)
    assert text == drawn(schedule, 4, virtual, 8)
    found = boxes(text)
    (row,) = {(box["x"], box["width"]) for box in found if box["fill"] == IDLE}
    left, right = float(row[0]), float(row[0]) + float(row[1])
    runs = [box for box in found if box.get("stroke") == "#ffffff"]
    assert len(runs) == sum(map(len, orders(schedule, 4, virtual, 8)))
    for box in runs:
        assert left - 0.02 <= float(box["x"])
        assert float(box["x"]) + float(box["width"]) <= right + 0.02


def test_runs_beside_each_other_share_the_row() -> None:
    heights = Counter(
        box["height"] for box in boxes(drawn("dualpipe-v", 2, 2, 4)) if box.get("stroke") == "#ffffff"
    )
    assert heights["14"] == 2 * len(pairs("dualpipe-v", 2, 2, 4))
    assert set(heights) == {"14", "28"}


def test_a_shade_for_each_stage_of_a_rank() -> None:
    fills = {box["fill"] for box in boxes(drawn("looped-bfs", 2, 3, 4))} - {IDLE, "#ffffff"}
    assert len(fills) == 2 * 3
    assert {HUES["F"], HUES["B"]} < fills


def test_captions_have_both_shares() -> None:
    text = words(drawn("1f1b", 4, 1, 8))
    assert (
        "idle: 37.5 % of the work, 27.3 % of the makespan; live activations: at most 4 microbatches a rank"
        in text
    )
    assert [word for word in text if word.startswith("live ")] == ["live 4", "live 3", "live 2", "live 1"]


def test_numbers_stand_where_there_is_room() -> None:
    """The long run of the last stage sets the scale: runs a hundred times shorter are drawn without a number."""
    text = words(drawn("1f1b", 2, 1, 4, Times([0.01, 1], [1, 1], [1, 1], [0])))
    assert Counter(word for word in text if word in {"0", "1", "2", "3"})["1"] == 3 + ("1" in axis(text))


def axis(text: list[str]) -> list[str]:
    """The numbers below the rows, which come after the last rank's figures."""
    last = max(index for index, word in enumerate(text) if word.startswith("live "))
    return text[last + 1 :]


def test_what_was_recorded_begins_at_0() -> None:
    events = [Event(0, Action(0, "F", 0), 5000.5, 5000.75), Event(0, Action(0, "B", 0), 5000.75, 5001.5)]
    text = timeline(events, "recorded", "s").text()
    assert axis(words(text))[0] == "0"
    assert "time, s" in words(text)


def test_nothing_recorded() -> None:
    ElementTree.fromstring(timeline([], "nothing").text())
