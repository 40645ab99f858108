"""Capture at several sizes: what `fxpar.dynamic.merge` makes one partition of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture.arguments import arguments
from fxpar.capture.bounds import Proof, prove
from fxpar.capture.capture import capture
from fxpar.capture.program import DynamicAxis, Program
from fxpar.capture.tree import flatten
from fxpar.clock import Clock
from fxpar.condition import Condition
from fxpar.dynamic import choice, limits, masks
from fxpar.dynamic.axes import Groups
from fxpar.dynamic.fit import Fit
from fxpar.emit.manifest import TIME
from fxpar.errors import CaptureError, PlanError
from fxpar.passes import resolved
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook


def captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plan: Plan | None = None,
    *,
    clock: Clock | None = None,
) -> Program:
    """Capture a model with its example inputs; with the dynamic axes of a plan, at other sizes too.

    Raises what `capture` raises; PlanError for axes that the inputs have not; CaptureError for a model that needs the
    size of one as a number, naming the line.
    """
    program = capture(model, args, kwargs, clock=clock, opaque=plan.opaque or () if plan else ())
    if plan is None or not plan.dynamic:
        return program
    if plan.opaque:
        raise PlanError(
            "a model with opaque modules cannot have dynamic axes",
            place=plan.place("dynamic"),
            details=["what an opaque module makes of other sizes is not known", "leave one of the two out"],
        )
    rulebook = Rulebook.load(plan.rules or ())
    groups = Groups(program, plan, rulebook)
    proof = prove(model, args, kwargs, groups.axes, groups.further)
    groups.settle(proof)
    plan = resolved(program, plan)
    while True:
        program.dynamic = _axes(groups, proof)
        _check_outputs(program, proof)
        program.conditions = _conditions(model, proof, program.dynamic)
        try:
            return _captured(program, model, args, kwargs, plan, _parts(groups, plan, rulebook))
        except CaptureError:
            if not groups.merge():
                raise


def _captured(
    program: Program,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    plan: Plan,
    parts: Mapping[str, int],
) -> Program:
    example = {axis.name: axis.size for axis in program.dynamic}

    def at(sizes: Mapping[str, int]) -> Program:
        return capture(model, *resized(model, args, kwargs, program.dynamic, sizes))

    points = choice.choose(program, program.dynamic, parts, masks.needed(program, program.dynamic))
    others = [at(sizes) for sizes in points]
    _check_constants(program, others)
    limits.limit(program, others, Fit([example, *points], plan.parts))
    masks.settle(program, others, program.dynamic)
    program.others = tuple(others)
    return program


def _parts(groups: Groups, plan: Plan, rulebook: Rulebook) -> dict[str, int]:
    """The number of parts into which each axis goes."""
    table = rulebook.table(plan)
    sizes = {**plan.mesh.sizes, TIME: plan.microbatches or 1}
    over = {name: table[axis].over if axis in table else () for name, axis in groups.instance_of.items()}
    return {name: prod(sizes[mesh_dim] for mesh_dim in dims) for name, dims in over.items()}


def _check_constants(program: Program, others: Sequence[Program]) -> None:
    """Raise CaptureError for a constant that the model makes of a size."""
    for node in program.graph.find_nodes(op="placeholder"):
        if node.meta["kind"] == "constant":
            name = node.meta["name"]
            values = [each.tensors.get(name) for each in (program, *others)]
            if not all(value is not None and _same(value, program.tensors[name]) for value in values):
                used = next((user.meta.get("source") for user in node.users if user.meta.get("source")), "")
                raise CaptureError(
                    f"a constant of the model is another one at other sizes: {used or name}",
                    details=["make it of tensors in `forward`", "or leave an axis out of `dynamic`"],
                )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_meta or other.is_meta:
        return one.shape == other.shape and one.dtype == other.dtype
    return torch.equal(one, other)


def _axes(groups: Groups, proof: Proof) -> tuple[DynamicAxis, ...]:
    """The axes with what the model's code allows."""
    found = []
    for name, places in groups.axes.items():
        bounds = [proof.bounds[symbol] for place in places if (symbol := proof.symbols[place])]
        most = min((high for _, high in bounds if high is not None), default=None)
        least = max(low for low, _ in bounds)
        reason = "the model asks for that" if most is not None else ""
        found.append(DynamicAxis(name, tuple(places), groups.size(name), least, most, reason))
    return tuple(found)


def _check_outputs(program: Program, proof: Proof) -> None:
    """Raise CaptureError for an output in words that a size is in."""
    found = program.graph.output_node().args[0]
    assert isinstance(found, tuple)
    for name, value, leaf in zip(program.output_names, found, proof.outputs):
        if isinstance(value, str) and leaf != value:
            raise CaptureError(
                f"output `{name}` is {value!r}, and another text at other sizes",
                details=["return the size itself", "or leave an axis out of `dynamic`"],
            )


def _conditions(model: nn.Module, proof: Proof, axes: Sequence[DynamicAxis]) -> tuple[Condition, ...]:
    """What the model asks of sizes beside their bounds, by axes. Raises CaptureError where that cannot be said."""
    names = {s: axis.name for axis in axes for place in axis.places if (s := proof.symbols[place])}
    bounds = {axis.name: (axis.least, axis.most) for axis in axes}
    example = {axis.name: axis.size for axis in axes}
    found: dict[str, Condition] = {}
    for guard in proof.guards:
        try:
            condition = guard.condition(names, bounds)
            holds = condition is None or condition.holds(example)
        except (KeyError, ValueError):
            condition, holds = None, False
        if not holds:
            words = " and ".join(f"`{axis.name}`" for axis in axes)
            raise CaptureError(
                f"{words} of `{type(model).__name__}` cannot be dynamic: {guard.place or guard.expression}",
                details=[
                    "what is asked of a size there cannot be asked of other sizes",
                    f"leave {words} out of `dynamic`",
                ],
            )
        if condition is not None:
            found.setdefault(condition.text, condition)
    return tuple(found.values())


def resized(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    axes: Sequence[DynamicAxis],
    sizes: Mapping[str, int],
    *,
    values: bool = False,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of other sizes, `sizes` by axis: on the meta device, or with `values`, those given over and over again."""
    changes = {place: sizes[axis.name] for axis in axes for place in axis.places}
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    given = [leaf for name, value in arguments(model, args, kwargs).items() for leaf in flatten(name, value)]
    new = [_resized(name, leaf, changes, values) for (name, _), leaf in zip(given, leaves)]
    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(new, spec)
    return found


def _resized(name: str, leaf: Any, changes: Mapping[tuple[str, int], int], values: bool) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if values:
        for dim, size in enumerate(leaf.shape):
            wanted = torch.arange(changes.get((name, dim), int(size)), device=leaf.device)
            leaf = leaf.index_select(dim, wanted % max(1, size))
        return leaf
    shape = [changes.get((name, dim), int(size)) for dim, size in enumerate(leaf.shape)]
    return torch.empty(shape, dtype=leaf.dtype, device="meta", requires_grad=leaf.requires_grad)
