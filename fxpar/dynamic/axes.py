"""Which dims of the inputs belong to the axes that are to be dynamic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fxpar import yamlfile
from fxpar.axes import infer, naming
from fxpar.axes.factor import Dim, Factor
from fxpar.capture.bounds import Place, Proof
from fxpar.capture.program import Program
from fxpar.errors import FxparError, ModelError, PlanError, raise_all
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook


class Groups:
    """The input dims that vary, by axis. Dims of one factor vary together.

    Where an axis has several instances, as a source and a target sequence, they are `sequence`, `sequence_2`, ...
    """

    def __init__(self, program: Program, plan: Plan, rulebook: Rulebook) -> None:
        """Raises PlanError for an axis that no rule names, or that no dim of an input is on."""
        self.sizes = _sizes(program)
        dims, named = _named(program, rulebook)
        words = {
            place: {axis for term in dim if isinstance(term, Factor) and (axis := named.axis(term))}
            for place, dim in dims.items()
        }
        possible = [axis for axis in rulebook.axes if any(axis in found for found in words.values())]
        raise_all([error for axis in plan.dynamic or () for error in _wrong(axis, plan, possible)])
        self.axes: dict[str, list[Place]] = {}
        self.instance_of: dict[str, str] = {}
        """The axis that each of these is an instance of."""
        for axis in plan.dynamic or ():
            self._add(axis, dims, named)
        raise_all([_shared(axis, plan, words) for axis in plan.dynamic or () if axis not in self.axes])
        self.further = [
            place
            for place, size in self.sizes.items()
            if not words.get(place) and size > 1 and size in {self.size(group) for group in self.axes}
        ]
        """Dims on no axis that are as long as a dynamic one: they may be of it."""

    def size(self, axis: str) -> int:
        """The example's size of an axis."""
        return self.sizes[self.axes[axis][0]]

    def settle(self, proof: Proof) -> None:
        """Give the dims on no axis to one: to that of an equal symbol, else to the only one of that size."""
        errors: list[FxparError] = []
        for place in self.further:
            symbol = proof.symbols[place]
            if symbol is None:
                continue
            equal = [a for a, places in self.axes.items() if symbol in {proof.symbols[p] for p in places}]
            alike = equal or [a for a in self.axes if self.size(a) == self.sizes[place]]
            if len(alike) == 1:
                self.axes[alike[0]].append(place)
            else:
                errors.append(_ambiguous(place, self.sizes[place], alike))
        raise_all(errors)

    def merge(self) -> bool:
        """Let all instances of one axis that are of one size vary together; whether that changes anything."""
        merged: dict[tuple[str, int], list[str]] = {}
        for axis in self.axes:
            merged.setdefault((self.instance_of[axis], self.size(axis)), []).append(axis)
        changed = len(merged) < len(self.axes)
        self.axes = {
            names[0]: [place for name in names for place in self.axes[name]] for names in merged.values()
        }
        return changed

    def _add(self, axis: str, dims: Mapping[Place, Dim], named: naming.Naming) -> None:
        instances: dict[Factor, list[Place]] = {}
        leading: dict[int, Factor] = {}
        for place, dim in dims.items():
            if len(dim) == 1 and isinstance(dim[0], Factor) and named.axis(dim[0]) == axis:
                # Leading dims of one size count the same samples, also where an op would broadcast one of them.
                same = dim[0] if place[1] else leading.setdefault(self.sizes[place], dim[0])
                instances.setdefault(same, []).append(place)
        for number, places in enumerate(instances.values(), 1):
            name = axis if number == 1 else f"{axis}_{number}"
            self.axes[name], self.instance_of[name] = places, axis


def _sizes(program: Program) -> dict[Place, int]:
    vals = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    return {
        (entry.name, dim): int(size)
        for entry in program.inputs
        if entry.placeholder and isinstance(vals[entry.placeholder], torch.Tensor)
        for dim, size in enumerate(vals[entry.placeholder].shape)
    }


def _named(program: Program, rulebook: Rulebook) -> tuple[dict[Place, Dim], naming.Naming]:
    """The factors of the dims of all inputs, and the names of factors."""
    found = infer.infer(program.graph, rulebook.ops)
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    given = {entry.name: nodes[entry.placeholder] for entry in program.inputs if entry.placeholder}
    named = naming.name(found, given.values(), rulebook.names, rulebook.composites)
    return {(name, i): dim for name, node in given.items() for i, dim in enumerate(found.of(node))}, named


def _wrong(axis: str, plan: Plan, possible: Sequence[str]) -> list[FxparError]:
    if axis in possible:
        return []
    position = list(plan.dynamic or ()).index(axis)
    place = plan.place(f"dynamic.{position}")
    what = f"no dim of an input is on an axis `{axis}`"
    details: Sequence[str]
    if not possible:
        details = ["no dim of an input is on any axis; a dim of size 1 never is: give a larger example"]
    else:
        details = yamlfile.suggest(axis, possible)
    return [PlanError(what, place=place, details=details)]


def _shared(axis: str, plan: Plan, words: Mapping[Place, set[str]]) -> PlanError:
    """The error for an axis of which no dim consists: the model reshapes it into several."""
    place = plan.place(f"dynamic.{list(plan.dynamic or ()).index(axis)}")
    found = [f"dim {dim} of `{name}`" for (name, dim), axes in words.items() if axis in axes]
    return PlanError(
        f"axis `{axis}` cannot be dynamic: the model splits it into several dims",
        place=place,
        details=[f"it is only a part of {' and of '.join(found)}", f"leave `{axis}` out of `dynamic`"],
    )


def _ambiguous(place: Place, size: int, axes: Sequence[str]) -> ModelError:
    name, dim = place
    return ModelError(
        f"dim {dim} of input `{name}` may be {' or '.join(f'`{axis}`' for axis in axes)}: all are {size}",
        details=["give example inputs in which these have different sizes"],
    )
