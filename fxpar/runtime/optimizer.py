"""What an optimizer keeps of each parameter, under the parameter's name: collected for saving, and put back.

state[w] = {exp_avg, exp_avg_sq: as w, step: one number}      exp_avg/w, exp_avg_sq/w   with the boxes of w
                                                              step/w                    whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from fxpar.checkpoint import plain
from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.local import read
from fxpar.checkpoint.sharded import CheckpointWeights
from fxpar.checkpoint.shardfile import CODES
from fxpar.checkpoint.target import MODEL, OPTIMIZER
from fxpar.checkpoint.weights import DTYPES
from fxpar.errors import CheckpointError
from fxpar.runtime.rank import Rank

#: What is no hyperparameter of a group.
_NAMES = ("params", "param_names")


class Slot(NamedTuple):
    """A tensor that is kept of a parameter: its dtype, and its shape unless that is the parameter's."""

    dtype: str
    shape: tuple[int, ...] | None = None


@dataclass
class Group:
    """Parameters with the same hyperparameters; `at` is the group's number in the optimizer."""

    at: int
    options: dict[str, Any]
    parameters: list[str]


@dataclass
class Kept:
    """An optimizer by the names of parameters: its class, groups, tensors without padding, and other values as JSON.

    On a rank, each parameter that it holds has slots and values, if only none.
    """

    kind: str
    groups: list[Group]
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    slots: dict[str, dict[str, Slot]] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)


def kind(thing: object) -> str:
    """The full name of an object's class."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def names(rank: Rank) -> dict[int, str]:
    """The name of each parameter of a rank by its id; of one that has several, the first name."""
    ties = rank.manifest.ties
    return {
        id(parameter): ties.get(name, name)
        for name, parameter in rank.named_parameters(remove_duplicate=False)
    }


def collect(optimizer: Optimizer, rank: Rank) -> Kept:
    """What an optimizer keeps on a rank. Raises CheckpointError that lists all that cannot be saved exactly."""
    known, problems = names(rank), list[str]()
    kept = Kept(kind(optimizer), [])
    for name in known.values():
        kept.slots[name], kept.values[name] = {}, {}
    for at, group in enumerate(optimizer.param_groups):
        options = {key: value for key, value in group.items() if key not in _NAMES}
        plainly = plain.encoded(options, f"group {at}", problems)
        strange = [p for p in group["params"] if id(p) not in known]
        problems += [f"group {at} has a parameter {list(p.shape)} that the module has not" for p in strange]
        found = [known[id(p)] for p in group["params"] if id(p) in known]
        kept.groups.append(Group(at, plainly, found))
    parameters = {known[id(p)]: p for p in optimizer.state if id(p) in known}
    scalars = _scalars(optimizer, parameters)
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                problems += _keep(kept, rank, name, key, value, parameter, key in scalars)
            else:
                plainly = plain.encoded(value, f"`{key}` of `{name}`", problems)
                kept.values[name][key] = plainly
    if problems:
        raise CheckpointError(
            f"the state of {type(optimizer).__name__} cannot be saved exactly", details=problems
        )
    return kept


def _scalars(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> set[str]:
    """The keys whose tensors have one element for some parameter of another shape, and so for all."""
    return {
        key
        for parameter in parameters.values()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() == 1
    }


def _keep(
    kept: Kept, rank: Rank, name: str, key: str, value: Tensor, parameter: Tensor, scalar: bool
) -> list[str]:
    """Keep a tensor; what is wrong with it, if anything."""
    where = f"`{key}` of `{name}`"
    if hasattr(value, "to_local") or hasattr(parameter, "to_local"):
        return [f"{where} is spread over ranks by torch itself"]
    if value.dtype not in CODES:
        return [f"{where} has dtype {value.dtype}, which safetensors cannot hold"]
    if scalar and value.numel() == 1:
        slot = Slot(CODES[value.dtype], tuple(value.shape))
    elif value.shape == parameter.shape:
        slot, value = Slot(CODES[value.dtype]), rank.padding.real(name, value)
    else:
        return [
            f"{where} is {list(value.shape)}, neither as the parameter {list(parameter.shape)} nor one number: "
            "which part of the whole it is, is not known"
        ]
    kept.tensors.setdefault(name, {})[key] = value.detach()
    kept.slots[name][key] = slot
    return []


def indexed(layout: Index, slots: Mapping[str, Mapping[str, Slot]]) -> dict[str, Indexed]:
    """The entries of an index for what is kept of parameters, each box in the first file that holds it."""
    return {
        f"{key}/{name}": _entry(layout.tensors[name], name, slot)
        for name in layout.tensors
        for key, slot in slots.get(name, {}).items()
    }


def _entry(parameter: Indexed, name: str, slot: Slot) -> Indexed:
    if slot.shape is None:
        first: dict[tuple[Part, ...], str] = {}
        for file, parts in parameter.files.items():
            first.setdefault(parts, file)
        files = {state_file(file): parts for parts, file in first.items()}
        return replace(parameter, dtype=slot.dtype, files=files, of=name, crc32={})
    zeros = (0,) * len(slot.shape)
    files = {state_file(next(iter(parameter.files))): (Part(zeros, slot.shape, zeros),)}
    placement = dict.fromkeys(parameter.placement, "Replicate")
    dims = tuple(str(size) for size in slot.shape)
    return Indexed(slot.dtype, slot.shape, dims, placement, files, parameter.at, name)


def state_file(file: str) -> str:
    """The file with the state of the parameters that a file of the model has."""
    return OPTIMIZER + file.removeprefix(MODEL)


def packed(
    optimizer: Optimizer,
    rank: Rank,
    saved: Kept,
    weights: CheckpointWeights,
    layout: Index,
    *,
    in_order: bool = False,
) -> dict[str, Any]:
    """The `state_dict` with which an optimizer goes on: what was kept of this rank's parameters, by their names.

    `saved` is that of all ranks. With `in_order` the groups must have the numbers that they had. Raises CheckpointError
    that lists all that does not fit.
    """
    options = _fitting(optimizer, rank, saved, in_order)
    known = names(rank)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check_files(saved, weights, layout, rank, {known[id(parameter)] for parameter in parameters})
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    held = [_read(known[id(parameter)], parameter, rank, saved, weights, layout) for parameter in parameters]
    groups = [
        {**group, **found, "params": [numbers[id(parameter)] for parameter in group["params"]]}
        for found, group in zip(options, optimizer.param_groups)
    ]
    return {"state": {number: each for number, each in enumerate(held) if each}, "param_groups": groups}


def put(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what `packed` made. Moments keep their dtypes, which torch casts to the parameter's: they may be wider."""
    if not state:
        return
    optimizer.load_state_dict(state)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in state["state"].items():
        loaded = optimizer.state[parameters[number]]
        for key, value in kept.items():
            if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                loaded[key] = value.to(loaded[key].device)


def _check_files(
    saved: Kept, weights: CheckpointWeights, layout: Index, rank: Rank, wanted: set[str]
) -> None:
    """Raise CheckpointError for files that will be read and are missing or damaged."""
    parts: dict[str, Sequence[Part]] = {}
    for name in wanted:
        for key, slot in saved.slots.get(name, {}).items():
            zeros = (0,) * len(slot.shape or ())
            whole = (Part(zeros, slot.shape, zeros),) if slot.shape is not None else None
            parts[f"{key}/{name}"] = whole or layout.parts_of(rank.groups.rank, name)
    weights.check(parts)


def _fitting(optimizer: Optimizer, rank: Rank, saved: Kept, in_order: bool) -> list[dict[str, Any]]:
    """The hyperparameters of each group. Raises CheckpointError."""
    known = names(rank)
    was = {name: group for group in saved.groups for name in group.parameters}
    problems, found, mine = list[str](), list[dict[str, Any]](), set[str]()
    if saved.kind != kind(optimizer):
        problems.append(f"the state is that of {saved.kind}, the optimizer is {kind(optimizer)}")
    for at, group in enumerate(optimizer.param_groups):
        strange = [p for p in group["params"] if id(p) not in known]
        problems += [f"group {at} has a parameter {list(p.shape)} that the module has not" for p in strange]
        own = [known[id(p)] for p in group["params"] if id(p) in known]
        problems += [f"missing: `{name}`" for name in own if name not in was]
        own = [name for name in own if name in was]
        problems += _differing(own, was)
        if in_order:
            problems += [
                f"`{name}` was in group {was[name].at}, and is in group {at}: the scheduler knows groups by number"
                for name in own
                if was[name].at != at
            ]
        mine |= set(own)
        found.append(plain.decoded(was[own[0]].options) if own else {})
    problems += [f"unexpected: `{name}`" for name in sorted(set(known.values()) & was.keys() - mine)]
    if problems:
        raise CheckpointError("the optimizer does not fit the checkpoint's", details=problems)
    return found


def _differing(own: Sequence[str], was: Mapping[str, Group]) -> list[str]:
    """The parameters of one group that had other hyperparameters than the first one."""
    if not own:
        return []
    first = was[own[0]].options
    return [
        f"`{own[0]}` and `{name}` are in one group, and had other hyperparameters: "
        + ", ".join(key for key in first if first[key] != was[name].options.get(key))
        for name in own
        if was[name].options != first
    ]


def _read(
    name: str, parameter: Tensor, rank: Rank, saved: Kept, weights: CheckpointWeights, layout: Index
) -> dict[str, Any]:
    """What is kept of a parameter, this rank's part of it."""
    held: dict[str, Any] = plain.decoded(saved.values.get(name, {}))
    parts = layout.parts_of(rank.groups.rank, name)
    for key, slot in saved.slots.get(name, {}).items():
        if slot.shape is not None:
            held[key] = weights.read(f"{key}/{name}")
            continue
        value = read(weights, f"{key}/{name}", parts, DTYPES[slot.dtype])
        held[key] = rank.padding.padded(name, value).to(parameter.device)
    return held
