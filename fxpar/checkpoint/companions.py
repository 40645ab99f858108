"""The other files of a checkpoint: what travels along as it is, such as config.json and the tokenizer's files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from fxpar.checkpoint import paths

#: Weights in whatever form, which are converted or left behind.
WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".npz",
    ".pkl",
)
#: What describes weights and ranks of the one layout.
INDEXES = {"fxpar.index.json", "fxpar.layout.json", "manifest.json"}
#: What goes with the state of an optimizer, and means nothing without it.
STATE = "training.json"
#: Emitted modules and their plan: `manifest.json` tells that a folder has them.
EMITTED = (".py", ".yaml")


def names(root: Path) -> tuple[tuple[str, ...], list[str]]:
    """The files of a folder that travel along, in order, and what is wrong with others.

    Hidden files, folders, weights and indexes of weights stay behind; of a partition its modules and its plan, too.
    """
    left = _emitted(root) | INDEXES
    found = [
        entry.name
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name)
        if not entry.name.startswith(".")
        and entry.name not in left
        and not entry.name.endswith((*WEIGHTS, *(f"{kind}.index.json" for kind in WEIGHTS)))
        and not (entry.is_dir() and not entry.is_symlink())
    ]
    wrong = [f"{name} {fault}" for name in found if (fault := paths.fault(root, name))]
    return tuple(found), wrong


def _emitted(root: Path) -> set[str]:
    """The modules and the plan that `fxpar partition` wrote into a folder."""
    try:
        files = json.loads((root / "manifest.json").read_text(encoding="utf-8"))["files"]
        return {name for name in files if name.endswith(EMITTED)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def stamps(root: Path, files: Iterable[str]) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of each file."""
    states = [(name, (root / name).stat()) for name in files]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def size(root: Path, files: Iterable[str]) -> int:
    """The bytes of files."""
    return sum(size for _, size, _ in stamps(root, files))


def copy(root: Path, files: Iterable[str], target: Path) -> None:
    """Copy files to a folder, over what has their names there. Raises OSError."""
    for name in files:
        shutil.copyfile(root / name, target / name)
