"""Real processes of which one fails: all end, with a status that is not zero, and the cause is said once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_runs import by_hand, ended, interrupt, no_child_remains, script, start, torchrun

from fxpar import origin
from fxpar.capture import source
from fxpar.emit.folder import write
from fxpar.passes import split
from fxpar.plan import Plan

GPT = str(Path(__file__).parents[2] / "examples" / "nanogpt.py")
STAGE_1 = "rank 1 (stage 1)"
RAISED = f"{STAGE_1}: ValueError: on purpose"
KILLED = "{} has ended without a word (killed, or out of memory?)"
PLANS = {"four": Plan(tp=2, pp=2, microbatches=2), "two": Plan(pp=2, microbatches=2)}

pytestmark = pytest.mark.gloo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with partitions for four ranks and for two."""
    place = tmp_path_factory.mktemp("faults")
    gpt = origin.of_source(source.find(GPT), dtype=torch.float64)
    for name, plan in PLANS.items():
        write(split(gpt.program, plan), place / name, gpt.weights, example=gpt.example)
    return place


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    with no_child_remains():
        yield


@pytest.mark.parametrize(
    ("fault", "told", "code"),
    [
        ("raise-forward", RAISED, 1),
        ("raise-backward", RAISED, 1),
        ("raise-optimizer", RAISED, 1),
        ("kill-forward", KILLED.format(STAGE_1), -signal.SIGKILL),
        ("kill-backward", KILLED.format(STAGE_1), -signal.SIGKILL),
        ("kill-transfer", KILLED.format(STAGE_1), -signal.SIGKILL),
    ],
)
def test_ranks_end_without_a_launcher(folder: Path, fault: str, told: str, code: int) -> None:
    """Nobody ends the other rank, so it has to notice by itself."""
    done = ended(*by_hand(script(folder / "two", fault, 1), [0, 1], 2))
    assert done.codes == [1, code]
    assert done.told == [told]
    speaker, other = (1, 0) if "raise" in fault else (0, 1)
    assert done.errors[speaker].endswith(f"{told}\n")
    assert done.errors[other] == ""


def test_the_rank_with_the_store_is_killed(folder: Path) -> None:
    done = ended(*by_hand(script(folder / "two", "kill-forward", 0), [0, 1], 2))
    assert done.codes == [-signal.SIGKILL, 1]
    assert done.told == [KILLED.format("rank 0 (stage 0)")]


@pytest.mark.parametrize(
    ("fault", "victim", "told"),
    [
        ("raise-backward", 3, "rank 3 (stage 1, tp 1): ValueError: on purpose"),
        ("kill-transfer", 2, KILLED.format("rank 2 (stage 1, tp 0)")),
    ],
)
def test_torchrun_with_four_ranks(folder: Path, fault: str, victim: int, told: str) -> None:
    done = ended(start([*torchrun(4), *script(folder / "four", fault, victim)]))
    assert done.codes == [1]
    assert done.told == [told]
    assert f"rank      : {victim} (local_rank: {victim})" in done.stderr.partition("Root Cause")[2]


@pytest.mark.parametrize("fault", ["leave-start", "wait-start"])
def test_a_rank_that_does_not_come(folder: Path, fault: str) -> None:
    """It ends before it has met the others, or hangs."""
    options = ("--start-timeout", "3")
    done = ended(start([*torchrun(2), *script(folder / "two", fault, 1, *options)]))
    assert done.codes == [1]
    assert done.told == [
        "rank 0 (stage 0): 1 of 2 ranks have started, and no other came within 3 s; "
        "rank 1 (stage 1) is missing"
    ]
    assert "--start-timeout SECONDS (start_timeout of fxpar.together) waits longer" in done.stderr


@pytest.mark.parametrize(
    ("present", "told"),
    [(0, "1 of 2 ranks have started"), (1, "nobody answers at 127.0.0.1")],
    ids=["the last", "the first"],
)
def test_a_rank_that_was_not_started(folder: Path, present: int, told: str) -> None:
    done = ended(*by_hand(script(folder / "two", "none", 0, "--start-timeout", "3"), [present], 2))
    assert done.codes == [2]
    (line,) = done.told
    assert told in line


def test_a_rank_that_hangs(folder: Path) -> None:
    """Its connections stay open: only the timeout tells."""
    processes = by_hand(script(folder / "two", "stop-forward", 1, "--timeout", "6"), [0, 1], 2)
    codes = [processes[0].wait()]
    processes[1].send_signal(signal.SIGCONT)
    done = ended(*processes)
    assert [*codes, *done.codes] == [1, 1, 1]
    (line,) = done.told
    assert line.startswith("rank 0 (stage 0): ")
    assert done.stderr.rstrip().endswith("rank 1 (stage 1) is silent")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_launcher_is_told_to_end(folder: Path, number: signal.Signals) -> None:
    """While one rank hangs, the other waits for it in a collective."""
    launcher = start([*torchrun(2), *script(folder / "two", "wait-forward", 1)])
    interrupt(launcher, number)
    done = ended(launcher)
    assert done.codes != [0]
    (line,) = done.told
    assert "interrupted" in line or number.name in line
