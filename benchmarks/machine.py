"""What a benchmark ran on: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe() -> str:
    """One line: processor, cores that this process may use, threads of torch, memory, versions."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = f"{torch.get_num_threads()} threads"
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{_processor()}, {cores} cores, {threads}, {memory:.0f} GB, {software}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
