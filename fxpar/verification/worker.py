"""One rank of a verification with real processes.

python -m fxpar.verification.worker RANK FOLDER WORLD DEVICE TIMEOUT JOB...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from fxpar.runtime.load import load
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.processes import connect
from fxpar.verification.compare import check
from fxpar.verification.processes import Job
from fxpar.verification.reference import Reference


def main(arguments: Sequence[str]) -> None:
    """Verify every job, one after the other, in the process group of all ranks."""
    rank, folder, world, device, timeout, *jobs = arguments
    place = torch.device(device, int(rank)) if device != "cpu" else torch.device("cpu")
    if place.type != "cpu":
        torch.accelerator.set_device_index(int(rank))
    dist.init_process_group(
        dist.get_default_backend_for_device(place),
        init_method=f"file://{Path(folder).resolve()}/store",
        rank=int(rank),
        world_size=int(world),
        timeout=timedelta(seconds=float(timeout)),
        device_id=place if place.type != "cpu" else None,
    )
    for job in jobs:
        verify(Job.read(Path(job)), place, float(timeout))
    dist.barrier()
    dist.destroy_process_group()


def verify(job: Job, device: torch.device, timeout: float) -> None:
    """Load this process's rank, compare it with the whole model and leave what was found."""
    manifest = Manifest.read(job.out)
    groups = connect(manifest.grid, manifest.groups, device=device, timeout=timeout)
    held = job.boxes(groups.rank)
    findings = check(load(job.out, groups, device), job.batch(), held.__getitem__, Reference.load(job.folder))
    job.findings(groups.rank).write_text(findings.to_json(), encoding="utf-8")
    groups.close()


if __name__ == "__main__":
    main(sys.argv[1:])
