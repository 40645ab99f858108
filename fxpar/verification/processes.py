"""A verification with one process for each rank, started from here.

The parent runs the whole model and leaves what it gives in a folder; the ranks read their parts of it from there:

    job/
      out/          the partition, as `fxpar partition` writes it
      reference.*   what the whole model gives
      batch.safetensors, job.json
      rank-0.json   what a rank found
      rank-0.log    what it said on stderr
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fxpar.checkpoint.weights import Box, FileWeights
from fxpar.emit.folder import write
from fxpar.errors import PlanError, RankError
from fxpar.parts import boxes
from fxpar.verification.compare import Findings
from fxpar.verification.reference import Reference
from fxpar.verification.report import Report, merge
from fxpar.verification.subject import Subject

#: Seconds after which a collective that does not end fails.
TIMEOUT = 120.0
#: Seconds that the other ranks have to end by themselves after one has failed.
GRACE = 5.0
#: How many of its last lines are shown of a rank that failed.
LINES = 12
_PAUSE = 0.02


@dataclass(frozen=True)
class Job:
    """One partition to verify: the folder that has everything, and that of the partition itself."""

    folder: Path
    out: Path

    def prepare(self, subject: Subject, reference: Reference) -> None:
        """Write what the ranks need, the partition itself unless it lies in a folder already."""
        if subject.folder is None:
            write(subject.partition, self.out, subject.weights)
        reference.save(self.folder)
        batch = {name: tensor.detach().cpu().contiguous() for name, tensor in subject.batch.items()}
        save_file({name: tensor.clone() for name, tensor in batch.items()}, self.folder / "batch.safetensors")
        facts = {"out": str(self.out.resolve()), "boxes": _boxes(subject)}
        (self.folder / "job.json").write_text(json.dumps(facts), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Job:
        """The job in a folder."""
        return Job(folder, Path(_facts(folder)["out"]))

    def boxes(self, rank: int) -> dict[str, list[Box]]:
        """The blocks of each tensor that a rank holds."""
        held = _facts(self.folder)["boxes"][rank]
        return {
            name: [Box(tuple(start), tuple(sizes)) for start, sizes in each] for name, each in held.items()
        }

    def batch(self) -> dict[str, torch.Tensor]:
        """The batch by the names of the inputs."""
        tensors = FileWeights.of(self.folder / "batch.safetensors")
        return {name: tensors.read(name) for name in tensors.names()}

    def findings(self, rank: int) -> Path:
        """Where a rank leaves what it found."""
        return self.folder / f"rank-{rank}.json"


def _boxes(subject: Subject) -> list[dict[str, Any]]:
    partition = subject.partition
    coordinates = [partition.mesh.coordinate(rank) for rank in range(partition.mesh.world)]
    return [{name: boxes(partition, name, at) for name in partition.manifest.tensors} for at in coordinates]


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    return facts


def verify_processes(
    subject: Subject, *, device: torch.device | str | None = None, timeout: float = TIMEOUT
) -> Report:
    """Start one process for each rank, compare there, and end them.

    `device` is the type of device of all ranks: by default the accelerator where there is one for each rank, else the
    CPU. Raises RankError, with the last lines of its log, for the first rank that fails; the others are ended.
    """
    return verify_all([subject], device=device, timeout=timeout)[0]


def verify_all(
    subjects: Sequence[Subject], *, device: torch.device | str | None = None, timeout: float = TIMEOUT
) -> list[Report]:
    """Verify several partitions of one number of ranks, one after the other in the same processes."""
    worlds = {each.partition.mesh.world for each in subjects}
    if len(worlds) != 1:
        raise PlanError(f"partitions of {sorted(worlds)} ranks cannot share their processes")
    world = worlds.pop()
    place = device_type(world, device)
    with tempfile.TemporaryDirectory(prefix="fxpar-verify-") as name:
        jobs, references = [], []
        for number, subject in enumerate(subjects):
            folder = Path(name) / str(number)
            folder.mkdir()
            job = Job(folder, subject.folder or folder / "out")
            reference = subject.reference(place)
            job.prepare(subject, reference)
            jobs.append(job)
            references.append(reference)
        launch(Path(name), jobs, world, place, timeout)
        return [_report(*each) for each in zip(subjects, jobs, references)]


def _report(subject: Subject, job: Job, reference: Reference) -> Report:
    world = subject.partition.mesh.world
    found = [Findings.from_json(job.findings(rank).read_text(encoding="utf-8")) for rank in range(world)]
    return merge(subject.partition, reference, found, simulated=False, sizes=subject.sizes)


def device_type(world: int, device: torch.device | str | None = None) -> str:
    """The type of device that all ranks run on. Raises PlanError if one was asked for and there are too few."""
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    found = torch.accelerator.current_accelerator()
    accelerator = found.type if found is not None and count else "cpu"
    wanted = torch.device(device).type if device is not None else ""
    if wanted and wanted not in ("cpu", accelerator):
        raise PlanError(f"there is no device `{wanted}` here")
    if wanted not in ("", "cpu") and count < world:
        raise PlanError(f"{world} ranks need {world} devices, and there are {count}")
    return wanted or (accelerator if count >= world else "cpu")


def launch(folder: Path, jobs: Sequence[Job], world: int, device: str, timeout: float) -> None:
    """Run the worker in as many processes as there are ranks, and wait for all."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    arguments = [str(folder), str(world), device, str(timeout), *(str(job.folder) for job in jobs)]
    with _logs(folder, world) as logs:
        command = [sys.executable, "-m", "fxpar.verification.worker"]
        started = [
            subprocess.Popen([*command, str(rank), *arguments], env=environment, stderr=log, stdout=log)
            for rank, log in enumerate(logs)
        ]
        try:
            failed = _first_failure(started)
        finally:
            _end(started)
    if failed is not None:
        raise _failure(folder, failed, started[failed].returncode)


@contextmanager
def _logs(folder: Path, world: int) -> Iterator[list[Any]]:
    files = [_log(folder, rank).open("wb") for rank in range(world)]
    try:
        yield files
    finally:
        for file in files:
            file.close()


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended well, or one has not; the rank of that one."""
    while True:
        codes = [process.poll() for process in started]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            return failed[0]
        if None not in codes:
            return None
        time.sleep(_PAUSE)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let all end by themselves for a while, then end them."""
    last = time.monotonic() + GRACE
    for process in started:
        try:
            process.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(folder: Path, rank: int, code: int) -> RankError:
    lines = _log(folder, rank).read_text(encoding="utf-8", errors="replace").splitlines()
    return RankError(f"rank {rank} failed with status {code}", details=lines[-LINES:])
