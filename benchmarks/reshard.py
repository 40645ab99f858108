"""Checkpoints in another layout: time as ratios to `cp` of the same bytes, and peak memory.

    python benchmarks/reshard.py [--gigabytes 1] [--rounds 5] [--toy]

Float32 weights of 4096 x 4096, in one file or in four, split by rows or by columns; `split` goes from one file to
four, `merge` back. All read from the page cache, and all wait until files and folder are on disk. Ways take turns, each
in a process of its own; imports do not count. `memory` is the kernel's high-water mark above what the process had after
its imports, mapped files included. Of the rounds' ratios the median is printed, and all; `fastest` is the fastest of
one way by the fastest `cp`, `cpu` the CPU seconds of the round that took least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from resharders import WAYS, settle
from resident import Peaks

from fxpar.checkpoint.index import NAME, Index, Indexed, Part
from fxpar.checkpoint.target import target

CASES = {"row split": "rows", "row merge": "rows", "column split": "columns", "column merge": "columns"}
MB = 2**20
FILES = 4


class Found(NamedTuple):
    """What a way took: seconds until all is on disk, CPU seconds of all threads, peak memory in bytes."""

    seconds: float
    cpu: float
    memory: int


def main() -> None:
    """Print the table, or go one way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--folder", type=Path, help="where to write, instead of a temporary folder")
    parser.add_argument("--toy", action="store_true", help="tiny weights, to see that it runs")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        _go(options.way, options.case, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _table(options, Path(folder))


def _table(options: argparse.Namespace, folder: Path) -> None:
    from machine import describe

    print(describe())
    size = 64 if options.toy else 4096
    count = 2 if options.toy else max(1, round(options.gigabytes * 2**30 / (4 * size * size)))
    _write(folder, size, count)
    print(f"{count} weights of {size} x {size}, float32: {4 * size * size * count / MB:.0f} MB")
    print(f"{'':34}{'/ cp':>7}{'all rounds':>18}{'fastest':>9}{'cpu':>9}{'memory':>10}")
    for case in CASES:
        _case(options, folder, case)


def _case(options: argparse.Namespace, folder: Path, case: str) -> None:
    """The rows of one case: in each round `cp`, then every way."""
    ways = [way for way in options.ways if WAYS[way].splits or case.endswith("merge")]
    found: dict[str, list[Found]] = {"cp": [], **{way: [] for way in ways}}
    for number in range(options.rounds):
        found["cp"].append(_cp(folder, case))
        for way in ways[:: 1 if number % 2 else -1]:
            slow = number and found[way][0].seconds > 5 * found["cp"][0].seconds
            if not slow:  # Those are slow enough to be measured once.
                found[way].append(_process(folder, way, case))
    for way, rounds in found.items():
        ratios = [mine.seconds / cp.seconds for mine, cp in zip(rounds, found["cp"])]
        least = min(each.seconds for each in rounds) / min(each.seconds for each in found["cp"])
        cpu = min(each.cpu for each in rounds)
        memory = max(each.memory for each in rounds) / MB
        row = f"{case:14}{way:20}{median(ratios):>7.2f}{min(ratios):>9.2f} to{max(ratios):>6.2f}{least:>9.2f}"
        print(f"{row}{cpu:>9.2f}{memory:>7.0f} MB", flush=True)


def _places(folder: Path, case: str) -> tuple[Path, Path]:
    """The checkpoint to read, and the one to write."""
    source = folder / (f"{CASES[case]}-one" if case.endswith("split") else f"{CASES[case]}-four")
    return source, folder / "made"


def _cp(folder: Path, case: str) -> Found:
    source, made = _places(folder, case)
    _clear(made)
    start, before = time.perf_counter(), _children()
    subprocess.run(["cp", "-r", source, made], check=True)
    settle(made)
    return Found(time.perf_counter() - start, _children() - before, 0)


def _clear(folder: Path) -> None:
    """Remove what the way before has written, and let the disk come to rest."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def _children() -> float:
    """CPU seconds of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _process(folder: Path, way: str, case: str) -> Found:
    command = [sys.executable, __file__, "--way", way, "--case", case, "--folder", str(folder)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Found(*json.loads(text.splitlines()[-1]))


def _go(way: str, case: str, folder: Path) -> None:
    source, made = _places(folder, case)
    source = source.with_name(f"{source.name}-summed") if WAYS[way].summed else source
    _clear(made)
    run = WAYS[way].prepare()
    peaks = Peaks().start()
    start, before = time.perf_counter(), time.process_time()
    run(source, made, 1 if case.endswith("merge") else FILES)
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    print(json.dumps([seconds, cpu, peaks.stop()["VmHWM"]]))


def _write(folder: Path, size: int, count: int) -> None:
    """The checkpoints that are read: in one file and in four, by rows and by columns."""
    import numpy as np

    from fxpar.checkpoint import layout
    from fxpar.checkpoint.index import metadata
    from fxpar.checkpoint.layout import Slot

    random = np.random.default_rng(0)
    for cut in dict.fromkeys(CASES.values()):
        dims = (f"rows={size}", f"columns={size}")
        box = Part((0, 0), (size, size), (0, 0))
        tensors = {
            f"layers.{number}.weight": Indexed(
                "F32", (size, size), dims, {}, {"model-pp0.safetensors": (box,)}
            )
            for number in range(count)
        }
        index = target(Index("made up", "0", {}, (), tensors, rows={cut: ("tp",)}), {})
        (file,) = index.files
        raw = folder / "raw"
        raw.mkdir()
        with (raw / file).open("wb") as out:
            slots = layout.ordered(Slot(name, "F32", (size, size)) for name in tensors)
            out.write(layout.header(slots, metadata(index, file)))
            for _ in slots:
                out.write(random.random((size, size), np.float32).data)
        (raw / NAME).write_text(index.to_json())
        for name, files in {"one": 1, "four": FILES}.items():
            _both(raw, folder / f"{cut}-{name}", files)
        shutil.rmtree(raw)


def _both(raw: Path, made: Path, files: int) -> None:
    """A checkpoint without checksums, and the same files with an index that has them."""
    from fxpar.checkpoint.reshard import reshard

    summed = made.with_name(f"{made.name}-summed")
    reshard(raw, summed, lambda index: target(index, {"tp": files}))
    made.mkdir()
    for path in summed.glob("*.safetensors"):
        os.link(path, made / path.name)
    index = Index.read(summed)
    tensors = {name: replace(tensor, crc32={}) for name, tensor in index.tensors.items()}
    (made / NAME).write_text(replace(index, tensors=tensors).to_json())


if __name__ == "__main__":
    main()
