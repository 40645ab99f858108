"""What is copied, what is summed up, and what is said of files that should be the same."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from fxpar.checkpoint.copy import Copy, Done
from fxpar.checkpoint.differing import Difference, element
from fxpar.checkpoint.index import Part
from fxpar.checkpoint.transfer import Held, Task
from fxpar.errors import CheckpointError

LEFT, RIGHT = Part((0, 0), (6, 4), (0, 0)), Part((0, 4), (6, 4), (0, 0))
WHOLE = Part((0, 0), (6, 8), (0, 0))
DATA = np.arange(48, dtype=np.int16).reshape(6, 8)


def held(path: Path, part: Part, data: np.ndarray | None, crc32: int | None = None, start: int = 3) -> Held:
    """A file of `start` bytes and a tensor, or room for one."""
    size = 2 * part.sizes[0] * part.sizes[1]
    path.write_bytes(b"x" * start + (data.tobytes() if data is not None else b"?" * size))
    return Held(path, start, (part,), crc32)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(
        "weight",
        "I16",
        (6, 8),
        (
            held(tmp_path / "left", LEFT, DATA[:, :4], zlib.crc32(DATA[:, :4].tobytes())),
            held(tmp_path / "right", RIGHT, DATA[:, 4:]),
            held(tmp_path / "again", RIGHT, DATA[:, 4:]),
        ),
        (held(tmp_path / "whole", WHOLE, None), held(tmp_path / "copy", LEFT, None)),
    )


@pytest.mark.parametrize("tile", [8, 16, 40, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_tensor_is_put_together_and_summed_up(task: Task, tile: int, threads: int) -> None:
    tasks: list[Done] = []
    sizes: list[int] = []
    Copy([task], tile=tile, done=tasks.append, progress=sizes.append).run(threads)
    assert task.targets[0].path.read_bytes() == b"xxx" + DATA.tobytes()
    assert task.targets[1].path.read_bytes() == b"xxx" + DATA[:, :4].tobytes()
    assert [done.targets for done in tasks] == [
        {"whole": zlib.crc32(DATA.tobytes()), "copy": zlib.crc32(DATA[:, :4].tobytes())}
    ]
    assert sum(sizes) == 96


def test_nothing_is_summed_up_without_need(task: Task) -> None:
    tasks: list[Done] = []
    Copy([task], checksums=False, done=tasks.append).run()
    assert tasks[0].sums == [None] * 5
    assert tasks[0].targets == {}


def test_replicas_that_differ(task: Task) -> None:
    other = DATA.copy()
    other[2, 5] += 1
    held(task.sources[2].path, RIGHT, other[:, 4:])
    with pytest.raises(CheckpointError) as caught:
        Copy([task]).run()
    line = "again: `weight` differs at [2, 5] from right, and should be the same"
    assert str(caught.value) == f"{task.sources[0].path.parent} is damaged\n  {line}"


def test_bytes_that_are_not_what_was_written(task: Task) -> None:
    other = DATA.copy()
    other[2, 3] += 1
    held(task.sources[0].path, LEFT, other[:, :4])
    with pytest.raises(
        CheckpointError, match=r"left: `weight` has the crc32 \w{8}, and had \w{8} when it was written"
    ):
        Copy([task]).run()


def test_other_layouts_are_compared(tmp_path: Path, task: Task) -> None:
    other = DATA.copy()
    other[5, 7] += 1
    found: list[Difference] = []
    compared = Task(
        task.name, task.dtype, task.shape, task.sources, (), (held(tmp_path / "other", WHOLE, other),)
    )
    Copy([compared], differs=found.append).run()
    assert [(each.path.name, each.index) for each in found] == [("other", (5, 7))]


def test_a_file_that_ends_too_early(task: Task) -> None:
    os.truncate(task.sources[1].path, 10)
    with pytest.raises(OSError, match="the file ends at byte 10") as caught:
        Copy([task]).run()
    assert caught.value.filename == str(task.sources[1].path)


def test_what_a_callback_raises_ends_everything(task: Task) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Copy([task] * 50, tile=8, progress=stop).run()


def test_elements_of_bytes() -> None:
    assert element(0, 16, ()) == ()
    assert element(11, 16, (2, 3)) == (1, 2)
    assert element(1, 4, (2, 3)) == (0, 2)
