"""What fxpar does, as functions: the commands are these, with models named by texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxpar import origin
from fxpar.axes.census import Census, census
from fxpar.capture import source
from fxpar.capture.capture import capture
from fxpar.checkpoint.sharded import open_weights
from fxpar.checkpoint.weights import Weights
from fxpar.clock import Clock
from fxpar.emit import folder
from fxpar.emit.staging import check_target
from fxpar.parallel import parallelize as parallelize
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook
from fxpar.runtime.load import load as load
from fxpar.runtime.together import together as together
from fxpar.verification.run import verify as verify


def infer_axes(
    model: nn.Module | str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[str] = (),
    rules: Sequence[str | Path] = (),
    plan: Plan | None = None,
    opaque: Sequence[str] = (),
) -> Census:
    """Find the axes of an unmodified model: their names, sizes and instances, and the mesh sizes that divide them.

    `model` is a module, with example inputs `args` and `kwargs`; or a text as `fxpar.capture.source.find` reads it,
    whose inputs are its own unless `inputs` describes them (`input_ids:int64[2,128]<32000`) or they are given here.
    `rules` are further folders of rules, `opaque` modules that stay one node, as of `capture`. With a `plan`, its own
    are taken too, and each axis says what it is divided over. Only opaque modules are run, and no weight is read.
    Raises ModelError, CaptureError, RuleError or PlanError.
    """
    if isinstance(model, str):
        found = source.find(model)
        if inputs or not (args or kwargs):
            example = found.example(inputs)
            args, kwargs = example.args, example.kwargs
        model = found.build()
    rulebook = Rulebook.load(rules, plan)
    over = _over(rulebook, plan) if plan else {}
    whole = [*opaque, *((plan.opaque or ()) if plan else ())]
    program = capture(model, args, kwargs, opaque=whole)
    return census(program, rulebook.ops, rulebook.names, over, rulebook.composites)


def partition(
    model: nn.Module | str,
    plan: Plan,
    inputs: Any = None,
    out: str | Path | None = None,
    *,
    weights: Weights | str | Path | bool = True,
    dtype: torch.dtype | str | None = None,
    training: bool = True,
    force: bool = False,
) -> Partition:
    """Split a model by a plan and, with `out`, write the folder that torchrun runs.

    `model` is a text as `fxpar.capture.source.find` reads it, built in `dtype` and in train or eval mode, with its own
    example inputs unless `inputs` describes them (`["input_ids:int64[2,128]<32000"]`); or a module, which is taken as
    it is, with example `inputs` (a dict, a tuple or a tensor). `weights` True are the model's own, False are none; a
    path is that of a checkpoint, of any mesh or in Hugging Face's layout, with the model's names.
    An existing folder of fxpar's is replaced only with `force`, when everything is written. Raises a FxparError of
    the pass that failed; then nothing is written.
    """
    if out is not None:
        check_target(Path(out), force)
    if isinstance(weights, str | Path):
        weights = open_weights(Path(weights))
    weights = weights if out is not None else False
    clock = Clock()
    with clock.measure("capture"):
        if isinstance(model, str):
            found = origin.of_source(
                source.find(model),
                inputs or (),
                dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
                training=training,
                weights=weights,
                seed=plan.seed,
                clock=clock,
                plan=plan,
            )
        else:
            found = origin.of_module(model, inputs, weights=weights, clock=clock, plan=plan)
    made = split(found.program, plan, source=found.text, clock=clock)
    if out is not None:
        with clock.measure("write"):
            made.manifest = folder.write(
                made, out, found.weights, force, example=found.example, companions=found.companions
            )
    return made


def _over(rulebook: Rulebook, plan: Plan) -> dict[str, dict[str, int]]:
    """For each axis the mesh dims with several ranks that the plan divides it over."""
    sizes = {**plan.mesh.sizes, "mb": plan.microbatches or 1}
    return {
        axis: {word: sizes[m] for m, word in row.words.items() if sizes[m] > 1}
        for axis, row in rulebook.table(plan).items()
    }
