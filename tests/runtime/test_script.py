"""Scripts of users under `fxpar.together`: ranks fail together there too."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fault_runs import by_hand, ended, no_child_remains, start, torchrun

import fxpar
from fxpar.errors import RankError

SCRIPT = str(Path(__file__).parent / "script_worker.py")
KILLED = "rank 1 has ended without a word (killed, or out of memory?)"


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    with no_child_remains():
        yield


@pytest.mark.gloo
@pytest.mark.parametrize("fault", ["none", "leave", "again"])
def test_a_script_that_ends_well(fault: str) -> None:
    done = ended(*by_hand([SCRIPT, fault, "1"], [0, 1], 2))
    assert (done.codes, done.stdout, done.stderr) == ([0, 0], "done 8\n" * 2, "")


@pytest.mark.gloo
@pytest.mark.parametrize(
    ("fault", "told", "code"),
    [
        ("raise", "rank 1: ValueError: on purpose", 1),
        ("exit", "rank 1: exited with 'no more tokens'", 1),
        ("kill", KILLED, -signal.SIGKILL),
        ("refused", "rank 1: ConnectionRefusedError: [Errno 111] Connection refused", 1),
    ],
)
def test_a_script_that_fails_on_one_rank(fault: str, told: str, code: int) -> None:
    """Nobody ends the other rank, so it has to notice by itself."""
    done = ended(*by_hand([SCRIPT, fault, "1"], [0, 1], 2))
    assert done.codes == [1, code]
    assert done.told == [told]


@pytest.mark.gloo
def test_torchrun_starts_all_again() -> None:
    """What the first attempt left in the store of torchrun says nothing of the second."""
    done = ended(start([*torchrun(2, "--max-restarts", "1"), SCRIPT, "first attempt", "1"]))
    assert done.codes == [0]
    assert done.stdout.count("done 8") == 2
    assert done.told == ["rank 1: ValueError: on purpose"]


@pytest.mark.gloo
def test_a_rank_that_does_not_come() -> None:
    done = ended(*by_hand([SCRIPT, "none", "1", "1"], [0], 2))
    assert done.codes == [2]
    assert "1 of 2 ranks have started" in done.told[0]


def test_alone_nothing_is_watched() -> None:
    with fxpar.together(device="cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()
    with pytest.raises(ValueError, match="on purpose"), fxpar.together():
        raise ValueError("on purpose")


def test_a_process_group_of_another(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with pytest.raises(RankError, match="there is a process group already"), fxpar.together():
            pass
    finally:
        dist.destroy_process_group()
