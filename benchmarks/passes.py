"""How long `fxpar partition` takes, pass by pass, beside `torch.export` in the same process; its memory and its text.

Each row is one run of the command in a process of its own, on the meta device and without weights. Rows take turns for
several rounds; a figure is the median of its rounds, and ratios are taken within one run, so that what else the
machine does falls on both sides.

    python benchmarks/passes.py                                       layers at 64 ranks, then ranks at 80 layers
    python benchmarks/passes.py --layers 4 80 --plans tp=8            the length of the text
    python benchmarks/passes.py --size toy --layers 2 --plans tp=2 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median

from machine import describe

#: Decoders by name: what stands in their `config.json` besides the number of layers.
SIZES: dict[str, dict[str, int]] = {
    "70b": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "toy": {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
}
#: Samples on each data rank, and the length of the sequence.
BATCHES = {"70b": (8, 4096), "toy": (2, 16)}
PASSES = ("axes", "shard", "pipeline", "emit")
ROWS = [(layers, "tp=8,pp=8") for layers in (8, 16, 32, 80)] + [(80, "tp=8"), (80, "tp=8,pp=8,dp=16")]
HEAD = ("layers", "ranks", "export", "capture", *PASSES, "write", "passes/export", "peak MiB", "lines")


@dataclass(frozen=True)
class Run:
    """One run of the command: the seconds of its passes, its peak memory in MiB, the lines of its modules."""

    seconds: dict[str, float]
    peak: float
    lines: int

    @property
    def ratio(self) -> float:
        """The time of all passes after capture, as a multiple of that of `torch.export`."""
        return sum(self.seconds[name] for name in PASSES) / self.seconds["export"]


def run(size: str, layers: int, plan: dict[str, int]) -> Run:
    """Partition a decoder once, in a new process. Raises CalledProcessError where the command fails."""
    batch, length = BATCHES[size]
    shape = f"int64[{batch * plan.get('dp', 1)},{length}]<{SIZES[size]['vocab_size']}"
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(_config(size, layers)), encoding="utf-8")
        command = [sys.executable, "-c", "from fxpar.cli import main; main()", "partition", place]
        command += ["--json", "--no-weights", "--dtype", "bfloat16", "-o", f"{place}/out"]
        command += [f"--{name}={number}" for name, number in plan.items()]
        command += [f"--input={name}:{shape}" for name in ("input_ids", "labels")]
        said, peak = _measured(command)
        texts = [path.read_text(encoding="utf-8") for path in Path(place, "out").glob("stage_*.py")]
    return Run(json.loads(said)["seconds"], peak, sum(len(text.splitlines()) for text in texts))


def _config(size: str, layers: int) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "use_cache": False,
        **SIZES[size],
    }


def _measured(command: Sequence[str]) -> tuple[str, float]:
    """What a command writes, and the most memory that it had, in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    scale = 2**20 if sys.platform == "darwin" else 2**10  # getrusage counts bytes there, and KiB elsewhere
    return said, usage.ru_maxrss / scale


def row(layers: int, plan: dict[str, int], runs: Sequence[Run]) -> list[str]:
    """A line of the table."""

    def middle(name: str) -> str:
        return f"{median(each.seconds[name] for each in runs):.2f}"

    own = median(each.seconds["capture"] - each.seconds["export"] for each in runs)
    times = [middle("export"), f"{own:.2f}", *map(middle, (*PASSES, "write"))]
    ratio = f"{median(each.ratio for each in runs):.2f}"
    peak = f"{max(each.peak for each in runs):.0f}"
    return [str(layers), str(prod(plan.values())), *times, ratio, peak, str(runs[0].lines)]


def parsed(plan: str) -> dict[str, int]:
    """The mesh of `tp=8,pp=8`."""
    return {name: int(number) for name, number in (pair.split("=") for pair in plan.split(","))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="70b", help="the shape of the decoder")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="numbers of layers")
    parser.add_argument("--plans", nargs="+", metavar="PLAN", default=["tp=8,pp=8"], help="as tp=8,pp=8")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row")
    given = parser.parse_args(arguments)
    rows = [(layers, plan) for layers in given.layers for plan in given.plans] if given.layers else ROWS
    runs: list[list[Run]] = [[] for _ in rows]
    for _ in range(given.rounds):
        for taken, (layers, plan) in zip(runs, rows):
            taken.append(run(given.size, layers, parsed(plan)))
    print(f"{describe()}; seconds, medians of {given.rounds}; capture without export\n")
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for taken, (layers, plan) in zip(runs, rows):
        print("| " + " | ".join(row(layers, parsed(plan), taken)) + " |")


if __name__ == "__main__":
    main()
