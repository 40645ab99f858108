"""`fxpar.verify`: is a partition the model? Of a module and a plan, of a model's text and a plan, or of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture import source as sources
from fxpar.capture.example import Example
from fxpar.errors import PlanError
from fxpar.plan import Plan
from fxpar.verification.processes import TIMEOUT, verify_all
from fxpar.verification.report import Report, joined
from fxpar.verification.simulated import verify_simulated
from fxpar.verification.subject import Subject, subject, subjects


def verify(
    model: nn.Module | str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    simulate: bool = False,
    inputs: Sequence[str] = (),
    training: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    timeout: float = TIMEOUT,
) -> Report:
    """Run every rank of a partition for one step and hold it against the whole model.

    Compared are the loss, every gradient and their norm, all parameters and buffers after a step of AdamW, and the
    outputs; of a partition with dynamic axes at the sizes of the batch and at others. `model` is a module with the
    batch `args` and `kwargs`, or a text that names one; both need a `plan`. Or it is a folder that `fxpar partition`
    wrote, whose modules and files are then loaded as they are. A model without a loss is given one: all floating-point
    outputs, with fixed random weights.

    With `simulate` all ranks run in this process, on the CPU; else one process a rank is started here, over gloo or, on
    accelerators (`device`), NCCL; a collective that takes longer than `timeout` seconds fails. A model that is named by
    a text is built in `dtype`, for `training` or not; without a batch it is given the one that `inputs` describe, else
    its own. Float64 models are compared in float64 throughout, also where their code asks for float32.

    A model in train mode draws random numbers, such as masks of dropout: the whole model is given those of the ranks in
    their first step from the plan's seed.

    Raises what the passes raise, ModelError for random numbers that cannot be drawn again, RankError for a rank that
    fails.
    """
    found = _subject(model, args, kwargs, plan, inputs, training, dtype)
    each = subjects(found)
    if simulate:
        return joined([verify_simulated(subject) for subject in each])
    return joined(verify_all(each, device=device, timeout=timeout))


def _subject(
    model: nn.Module | str | Path,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    plan: Plan | None,
    inputs: Sequence[str],
    training: bool,
    dtype: torch.dtype | None,
) -> Subject:
    if not isinstance(model, nn.Module) and (Path(model) / "manifest.json").is_file():
        from fxpar.verification.folder import folder_subject

        if plan is not None:
            raise PlanError(
                f"{model} has its own plan", details=["verify the model instead, or leave the plan out"]
            )
        return folder_subject(Path(model))
    if plan is None:
        raise PlanError(
            "a model is verified with a plan", details=["fxpar.verify(..., plan=fxpar.Plan(tp=2))"]
        )
    if isinstance(model, nn.Module):
        return subject(model, args, kwargs or {}, plan)
    given = Example(tuple(args), dict(kwargs or {})) if args or kwargs else None
    return named_subject(str(model), plan, inputs, training=training, dtype=dtype, example=given)


def named_subject(
    text: str,
    plan: Plan,
    inputs: Sequence[str] = (),
    *,
    training: bool = True,
    dtype: torch.dtype | None = None,
    example: Example | None = None,
) -> Subject:
    """A model by its text, with its own weights, or weights drawn from the plan's seed where it has none."""
    source = sources.find(text)
    example = example or source.example(inputs)
    model = source.build(real=True, seed=plan.seed, dtype=dtype).train(training)
    weights = source.weights(model)
    args, kwargs = pytree.tree_map(partial(_cast, dtype), (example.args, dict(example.kwargs)))
    return subject(model, args, kwargs, plan, weights=weights, source=text)


def _cast(dtype: torch.dtype | None, leaf: Any) -> Any:
    """A floating-point input in the dtype of the model."""
    floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    return leaf.to(dtype) if floating and dtype is not None else leaf
