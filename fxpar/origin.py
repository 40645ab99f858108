"""What a partition begins with: a captured model, its weights, the example batch, and the files that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture.arguments import arguments
from fxpar.capture.example import Example, from_texts, from_value
from fxpar.capture.precision import Float64
from fxpar.capture.program import Program
from fxpar.capture.source import Source
from fxpar.capture.tree import flatten
from fxpar.checkpoint.weights import TensorWeights, Weights
from fxpar.clock import Clock
from fxpar.dynamic.capture import captured as capture
from fxpar.errors import ModelError
from fxpar.plan import Plan


@dataclass
class Origin:
    """A captured model; `weights` is None where none are wanted, `example` has tensors by input name."""

    program: Program
    example: dict[str, torch.Tensor]
    weights: Weights | None
    text: str = ""
    """How the user named the model."""
    companions: Sequence[Path] = field(default_factory=list)


def of_source(
    source: Source,
    inputs: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
    training: bool = True,
    weights: Weights | bool = True,
    seed: int = 0,
    clock: Clock | None = None,
    plan: Plan | None = None,
) -> Origin:
    """Build a model without its parameters and capture it, in train or eval mode.

    With `weights` True they are those that come with the source, read in slices; a source without any is built for
    real, its parameters drawn under `seed`. `dtype` is that of parameters and of floating-point inputs. Raises
    ModelError, CaptureError or CheckpointError. A `plan` with dynamic axes has it captured at other sizes too.
    """
    example = _cast(source.example(inputs, seed=seed), dtype)
    model = source.build(dtype=dtype).train(training)
    found = source.weights(model) if weights is True else weights or None
    if weights is True and found is None:
        model = source.build(real=True, seed=seed, dtype=dtype).train(training)
        found = TensorWeights(model.state_dict())
    program = captured(model, example, plan, clock)
    if _lacks_values(program):
        model_with_values = source.build(real=True, seed=seed, dtype=dtype).train(training)
        program = captured(model_with_values, example, plan, clock)
    return Origin(program, batch(model, example), found, source.text, source.companions())


def of_module(
    model: nn.Module,
    inputs: Any,
    *,
    weights: Weights | bool = True,
    clock: Clock | None = None,
    plan: Plan | None = None,
) -> Origin:
    """Capture a module as it is: its mode, its dtype and, with `weights` True, its own parameters."""
    example = inputs if isinstance(inputs, Example) else _example(inputs)
    found = TensorWeights(model.state_dict()) if weights is True else weights or None
    return Origin(captured(model, example, plan, clock), batch(model, example), found)


def _example(inputs: Any) -> Example:
    if inputs is None:
        raise ModelError("a module needs example inputs", details=["inputs={'input_ids': tensor, ...}"])
    if isinstance(inputs, Sequence) and inputs and all(isinstance(text, str) for text in inputs):
        return from_texts(inputs)
    return from_value(inputs, "inputs")


def captured(
    model: nn.Module, example: Example, plan: Plan | None = None, clock: Clock | None = None
) -> Program:
    """Capture a model; one whose parameters are float64 stays in float64 throughout."""
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    precision: AbstractContextManager[Any] = Float64() if double else nullcontext()
    with precision:
        return capture(model, example.args, example.kwargs, plan, clock=clock)


def batch(model: nn.Module, example: Example) -> dict[str, torch.Tensor]:
    """The example's tensors by the names of the model's inputs; those on the meta device have no values to keep."""
    named: Mapping[str, Any] = arguments(model, example.args, example.kwargs)
    leaves = (leaf for name, value in named.items() for leaf in flatten(name, value))
    return {name: value for name, value in leaves if isinstance(value, torch.Tensor) and not value.is_meta}


def _cast(example: Example, dtype: torch.dtype | None) -> Example:
    """The example with floating-point tensors in a dtype."""

    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating and dtype is not None else value

    return Example(pytree.tree_map(cast, example.args), pytree.tree_map(cast, dict(example.kwargs)))


def _lacks_values(program: Program) -> bool:
    """Whether something that stands in no checkpoint lies on the meta device."""
    parameters = {
        n.meta["name"] for n in program.graph.find_nodes(op="placeholder") if n.meta["kind"] == "parameter"
    }
    return any(
        tensor.is_meta
        for name, tensor in program.tensors.items()
        if name not in parameters and name not in program.persistent
    )
