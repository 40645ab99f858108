"""Running the passes again for a folder that `fxpar partition` wrote, from what it says of its model and plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxpar.capture import source as sources
from fxpar.capture.example import Example
from fxpar.capture.precision import Float64
from fxpar.dynamic.capture import captured
from fxpar.emit.folder import EXAMPLE, PLAN
from fxpar.errors import EmitError
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.batches import batches
from fxpar.runtime.manifest import Manifest


@dataclass
class Again:
    """A partition as it was made, its model, and the batch that it was captured with."""

    partition: Partition
    model: nn.Module
    example: Example
    exact: bool
    """Whether it was captured in float64 throughout."""


def again(folder: Path, *, real: bool = False) -> Again:
    """Build the model of a folder and split it by the folder's plan; nothing of its weights is read.

    With `real` its tensors have values, drawn under the plan's seed; else its parameters lie on the meta device.

    Raises EmitError where the folder does not say what its model is, or the model or fxpar give another partition now.
    """
    manifest = Manifest.read(folder)
    if not manifest.source:
        raise EmitError(
            f"{folder} does not say which model it was made of", details=["its manifest has no source"]
        )
    source = sources.find(manifest.source)
    model = source.build(real=real, seed=manifest.seed, dtype=_dtype(manifest)).train(manifest.training)
    example = _example(folder, manifest) or source.example()
    plan = Plan.from_yaml(folder / PLAN)
    for exact in (True, False) if _dtype(manifest) == torch.float64 else (False,):
        with precision(exact):
            program = captured(model, example.args, example.kwargs, plan)
        partition = split(program, plan, source=manifest.source)
        if partition.manifest.hash == manifest.hash:
            return Again(partition, model, example, exact)
    raise EmitError(
        f"{folder} is not what {manifest.source} gives now",
        details=[
            f"hash {manifest.hash} in the folder, {partition.manifest.hash} now",
            "the model, the plan, fxpar or torch changed: partition the model again",
        ],
    )


def precision(exact: bool) -> AbstractContextManager[object]:
    """Run models in float64 throughout, or as they are."""
    return Float64() if exact else nullcontext()


def _dtype(manifest: Manifest) -> torch.dtype | None:
    """The dtype of all floating-point parameters, None if they have several."""
    dtypes = {getattr(torch, spec.dtype) for spec in manifest.tensors.values() if spec.kind == "parameter"}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    return floating[0] if len(floating) == 1 else None


def _example(folder: Path, manifest: Manifest) -> Example | None:
    """The batch in the folder, if there is one and no argument of the model is nested."""
    if EXAMPLE not in manifest.files or any("." in spec.name for spec in manifest.inputs):
        return None
    batch: Mapping[str, Any] = batches(folder, manifest)[0]
    return Example(kwargs={spec.name: batch[spec.name] for spec in manifest.inputs})
