"""Batches for a run: tensors by the names of the model's inputs, from files, and what was captured of other inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fxpar.emit.folder import EXAMPLE
from fxpar.errors import RankError
from fxpar.runtime.manifest import Manifest

Batch = dict[str, Any]


def batches(folder: Path, manifest: Manifest, files: Sequence[str | Path] = ()) -> list[Batch]:
    """The batches in some `.safetensors` or `.npz` files; without any, the example that the model was captured with.

    Raises RankError for a file that cannot be read, and where there is neither a file nor an example.
    """
    if not files and EXAMPLE not in manifest.files:
        wanted = [f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in manifest.inputs if spec.dtype]
        what = "there is no example batch in the folder: give --batch FILE with these tensors"
        raise RankError(what, details=wanted)
    return [manifest.literals | _read(Path(file)) for file in files or [folder / EXAMPLE]]


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        details = ["a batch is a .safetensors or .npz file"]
        raise RankError(f"{path} cannot be read: {error}", details=details) from error
