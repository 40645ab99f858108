"""`training.json`: what a stopped run needs besides tensors to go on. Plain JSON; nothing is unpickled.

    {"format": 1, "step": 10, "mesh": {"pp": 2, "tp": 2},
     "optimizer": {"class": "torch.optim.adamw.AdamW",
      "groups": [{"at": 0, "options": {"lr": 0.001, "betas": {"!tuple": [0.9, 0.999]}, ...},
                  "parameters": ["tokens.weight", ...]}],
      "values": {}},
     "scheduler": {"class": "torch.optim.lr_scheduler.LambdaLR", "state": {"base_lrs": [0.001], ...}},
     "randomness": {"seed": 0, "step": 10},
     "generators": [{"cpu": "..."}]}

Parameters are known by name, `at` is the number of their group. `values` are what an optimizer keeps of a parameter
that is no tensor. `generators` are the states of torch's default generators in base64: one for all ranks, or one each.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxpar.checkpoint import plain
from fxpar.checkpoint.index import Index
from fxpar.errors import CheckpointError
from fxpar.runtime.optimizer import Group, Kept, Slot, kind
from fxpar.runtime.rank import Rank

T = TypeVar("T")
NAME = "training.json"
#: Raised whenever an older reader would misunderstand what is written.
FORMAT = 1


@dataclass
class Training:
    """The state of a run: of all ranks when it was merged or read, of one when it was collected there."""

    step: int | None
    mesh: dict[str, int]
    optimizer: Kept | None = None
    scheduler: dict[str, Any] | None = None
    randomness: dict[str, int] = field(default_factory=dict)
    generators: list[dict[str, str]] = field(default_factory=list)

    def to_json(self, *, slots: bool = False) -> str:
        """The state as text; with `slots`, also which tensors the optimizer keeps, as the index says it later."""
        data: dict[str, Any] = {"format": FORMAT, "step": self.step, "mesh": self.mesh, "optimizer": None}
        if self.optimizer is not None:
            kept = self.optimizer
            groups = [vars(group) for group in kept.groups]
            values = {name: each for name, each in kept.values.items() if each or slots}
            data["optimizer"] = {"class": kept.kind, "groups": groups, "values": values}
            if slots:
                data["optimizer"]["slots"] = kept.slots
        data |= {"scheduler": self.scheduler, "randomness": self.randomness, "generators": self.generators}
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, origin: str = NAME) -> Training:
        """Read what `to_json` wrote. Raises CheckpointError, naming `origin`, for anything else."""
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise CheckpointError(f"{origin} has format {data['format']}, this fxpar reads {FORMAT}")
            step, scheduler, random = data["step"], data["scheduler"], data["randomness"]
            if not (step is None or (type(step) is int and step >= 0)):
                raise ValueError(f"{step!r} is no number of steps")
            if scheduler is not None and not (scheduler.keys() == {"class", "state"}):
                raise ValueError("the scheduler has no class or state")
            return Training(
                step,
                dict(data["mesh"]),
                _kept(data["optimizer"]),
                scheduler,
                {"seed": int(random["seed"]), "step": int(random["step"])},
                [dict(each) for each in data["generators"]],
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{origin} is damaged", details=[reason]) from error

    @staticmethod
    def read(folder: Path) -> Training:
        """The training state of a checkpoint. Raises CheckpointError where there is none."""
        path = folder / NAME
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no state of training: there is no {NAME}",
                details=["fxpar.load(folder, weights=...) reads weights alone"],
            )
        try:
            return Training.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def _kept(data: Mapping[str, Any] | None) -> Kept | None:
    if data is None:
        return None
    groups = [
        Group(int(g["at"]), dict(g["options"]), [str(name) for name in g["parameters"]])
        for g in data["groups"]
    ]
    slots = {
        name: {
            key: Slot(dtype, shape if shape is None else tuple(shape)) for key, (dtype, shape) in each.items()
        }
        for name, each in data.get("slots", {}).items()
    }
    values = {name: dict(each) for name, each in data["values"].items()}
    return Kept(data["class"], groups, slots=slots, values=values)


def slots(index: Index) -> dict[str, dict[str, Slot]]:
    """Which tensors a checkpoint has of an optimizer: parameter -> key -> slot."""
    found: dict[str, dict[str, Slot]] = {}
    for name, tensor in index.tensors.items():
        if tensor.of:
            if tensor.of not in index.tensors or not name.endswith(f"/{tensor.of}"):
                raise CheckpointError(f"`{name}` is the state of `{tensor.of}`, which the index has not")
            shape = None if tensor.shape == index.tensors[tensor.of].shape else tensor.shape
            found.setdefault(tensor.of, {})[name.removesuffix(f"/{tensor.of}")] = Slot(tensor.dtype, shape)
    return found


def scheduled(scheduler: Any) -> dict[str, Any]:
    """A scheduler as JSON. Raises CheckpointError that lists all that JSON cannot hold."""
    problems: list[str] = []
    state = plain.encoded(scheduler.state_dict(), "its state", problems)
    if problems:
        what = f"the state of {type(scheduler).__name__} cannot be saved exactly"
        raise CheckpointError(what, details=problems)
    return {"class": kind(scheduler), "state": state}


def generators(rank: Rank) -> dict[str, str]:
    """The states of the default generators of the CPU and of a rank's device."""
    device = _device(rank)
    states = {"cpu": torch.get_rng_state()}
    if device.type not in ("cpu", "meta"):
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return {place: base64.b64encode(bytes(state.tolist())).decode() for place, state in states.items()}


def own_generators(training: Training, rank: Rank) -> dict[torch.device, Tensor]:
    """The states with which a rank's generators go on; where they differ by rank, only if the mesh is the same."""
    states, here = training.generators, _device(rank)
    if len(states) > 1 and (
        training.mesh != dict(rank.manifest.mesh) or len(states) != rank.groups.mesh.world
    ):
        return {}
    found = {}
    for place, text in states[min(rank.groups.rank, len(states) - 1)].items() if states else ():
        device = here if place == here.type else torch.device("cpu")
        try:
            state = torch.tensor(list(base64.b64decode(text, validate=True)), dtype=torch.uint8)
            if place in ("cpu", here.type):
                torch.Generator(device).set_state(state)
                found[device] = state
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{NAME} is damaged: `{place}` has no state of a generator") from error
    return found


def set_generator(device: torch.device, state: Tensor) -> None:
    """Let the default generator of a device go on."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def _device(rank: Rank) -> torch.device:
    return next((tensor.device for tensor in rank.parameters()), torch.device("cpu"))


def merged(ranks: Sequence[Training]) -> Training:
    """The state of a run from those of its ranks. Raises CheckpointError for all in which they disagree."""
    problems: list[str] = []
    first = ranks[0]
    scheduler = _alike("scheduler", [each.scheduler for each in ranks], problems)
    for what in ("step", "randomness"):
        _alike(what, [getattr(each, what) for each in ranks], problems)
    optimizer = _merged([each.optimizer for each in ranks], scheduler is not None, problems)
    own = [state for each in ranks for state in each.generators]
    states = own[:1] if all(state == own[0] for state in own) else own
    if problems:
        raise CheckpointError("the ranks have different states", details=problems)
    return Training(first.step, first.mesh, optimizer, scheduler, first.randomness, states)


def _alike(what: str, values: Sequence[Any], problems: list[str]) -> Any:
    """The one value of all ranks that have one."""
    given = [(number, value) for number, value in enumerate(values) if value is not None]
    for number, value in given[1:]:
        if value != given[0][1]:
            problems.append(
                f"{what}: rank {given[0][0]} has {_short(given[0][1])}, rank {number} {_short(value)}"
            )
            break
    return given[0][1] if given else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _merged(ranks: Iterable[Kept | None], in_order: bool, problems: list[str]) -> Kept | None:
    given = [(number, each) for number, each in enumerate(ranks) if each is not None]
    if not given:
        return None
    _alike("the optimizer's class", [each.kind for _, each in given], problems)
    whole, owner = Kept(given[0][1].kind, []), dict[str, tuple[int, Group]]()
    for number, each in given:
        for group in each.groups:
            _join(whole, owner, number, group, in_order, problems)
        _add(whole.slots, each.slots, number, problems)
        _add(whole.values, each.values, number, problems)
    return whole


def _add(whole: dict[str, T], own: Mapping[str, T], number: int, problems: list[str]) -> None:
    """Add what a rank keeps of parameters; ranks that hold the same one have to keep the same of it."""
    for name, found in own.items():
        if whole.setdefault(name, found) != found:
            what = f"{_short(found)}, a rank before it {_short(whole[name])}"
            problems.append(f"the state of `{name}` on rank {number} is {what}")


def _join(
    whole: Kept,
    owner: dict[str, tuple[int, Group]],
    number: int,
    group: Group,
    in_order: bool,
    problems: list[str],
) -> None:
    """Add a rank's group to those of the whole: to one with its number and hyperparameters, or as a new one."""
    same = [g for g in whole.groups if (g.at, g.options) == (group.at, group.options)]
    target = same[0] if same else Group(group.at, group.options, [])
    if not same and group.parameters:
        whole.groups.append(target)
    for name in group.parameters:
        if name not in owner:
            owner[name] = number, target
            target.parameters.append(name)
            continue
        other, was = owner[name]
        if was.options != group.options or (in_order and was.at != group.at):
            problems.append(
                f"`{name}` is in group {was.at} with {_short(was.options)} on rank {other}, in group {group.at} with "
                f"{_short(group.options)} on rank {number}"
            )
