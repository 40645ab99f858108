"""Peak memory of a partition being written, of a rank that loads it, and of a rank in a step.

    python benchmarks/memory.py [--tp 4] [--toy]

A model of 1 GB (float32) is written to a folder by one process, partitioned by a second, and loaded by one process a
rank, which then run a step together. All figures are above what the process had after its imports. `anon` is memory
that the process filled, watched every 2 ms; `file` are pages of mapped files, libraries included; `high` is the
kernel's high-water mark of both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from machine import describe
from resident import Peaks

MB = 2**20
INPUTS = [f"{name}:int64[1,{{}}]<{{}}" for name in ("input_ids", "labels")]


def main() -> None:
    """Print the table, or be one of its processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tp", type=int, default=4)
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--part", choices=("write", "passes", "split", "rank"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"write": _write, "passes": _split, "split": _split, "rank": _rank}[options.part](options)
        return
    with tempfile.TemporaryDirectory() as folder:
        _table(options, Path(folder))


def _table(options: argparse.Namespace, folder: Path) -> None:
    given = ["--tp", str(options.tp), "--folder", str(folder), *["--toy"] * options.toy]
    (model,) = _processes([*given, "--part", "write"], 1)
    passes = _processes([*given, "--part", "passes"], 1)
    split = _processes([*given, "--part", "split"], 1)
    ranks = _processes([*given, "--part", "rank"], options.tp)
    print(describe())
    print(f"model {model['bytes'] / MB:.0f} MB, its largest tensor {model['largest'] / MB:.0f} MB")
    print(f"{'':16}{'shards':>9}{'largest':>9}{'anon':>9}{'file':>9}{'high':>9}")
    _row("passes alone", passes, "peak")
    _row("fxpar partition", split, "peak")
    _row(f"load, tp {options.tp}", ranks, "load")
    _row("and a step", ranks, "step")


def _row(title: str, processes: Sequence[Mapping[str, Any]], key: str) -> None:
    """One line, the most of all ranks."""
    cells = [max(p[size] for p in processes) for size in ("bytes", "largest")]
    cells += [max(p[key][kind] for p in processes) for kind in ("RssAnon", "RssFile", "VmHWM")]
    print(f"{title:16}" + "".join(f"{cell / MB:>6.0f} MB" for cell in cells), flush=True)


def _processes(arguments: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Run this script in some processes, and read what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    command = [sys.executable, __file__, *arguments]
    started = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process failed")
    return [json.loads(text.splitlines()[-1]) for text in texts]


def _write(options: argparse.Namespace) -> None:
    """Write the model's folder."""
    import transformers

    width, layers, vocab = (64, 2, 512) if options.toy else (1024, 16, 32000)
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
        tie_word_embeddings=False,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(options.folder / "model", max_shard_size="400MB")
    _say(_sizes(model.parameters()))


def _split(options: argparse.Namespace) -> None:
    """Partition the folder, as the command does; of `passes` nothing is written."""
    import transformers.modeling_utils  # noqa: F401 - not to be counted

    import fxpar

    source = options.folder / "model"
    out = options.folder / "out" if options.part == "split" else None
    vocab, length = (512, 16) if options.toy else (32000, 64)
    peaks = Peaks().start()
    fxpar.partition(
        str(source),
        fxpar.Plan(tp=options.tp),
        inputs=[text.format(length, vocab) for text in INPUTS],
        out=out,
    )
    peak = peaks.stop()
    files = [path.stat().st_size for path in out.glob("model-*.safetensors")] if out else []
    _say({"bytes": sum(files), "largest": 0, "peak": peak})


def _rank(options: argparse.Namespace) -> None:
    """Load one rank, and run a step on the example."""
    from safetensors.torch import load_file

    from fxpar.runtime.load import load
    from fxpar.runtime.manifest import Manifest
    from fxpar.runtime.processes import connect

    out = options.folder / "out"
    dist.init_process_group("gloo")
    manifest = Manifest.read(out)
    groups = connect(manifest.grid, manifest.groups)
    batch = load_file(out / "example.safetensors")
    peaks = Peaks().start()
    rank = load(out, groups)
    loaded = peaks.now()
    dist.barrier()
    rank.step(batch)
    _say({**_sizes(rank.parameters()), "load": loaded, "step": peaks.stop()})
    groups.close()
    dist.destroy_process_group()


def _sizes(tensors: Any) -> dict[str, int]:
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    return {"bytes": sum(sizes), "largest": max(sizes)}


def _say(found: Mapping[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
