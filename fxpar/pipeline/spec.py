"""What the runtime has to know of a stage: plain data that goes into the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class ValueSpec:
    """A tensor that travels between two stages: its name, local shape, dtype, and whether a gradient comes back."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool

    def empty(self, device: torch.device | str) -> torch.Tensor:
        """An uninitialised tensor of this kind."""
        dtype = getattr(torch, self.dtype)
        return torch.empty(self.shape, dtype=dtype, device=device, requires_grad=self.requires_grad)


@dataclass(frozen=True)
class StageCosts:
    """What one microbatch costs a stage, in flops, with memory traffic converted; see `pipeline/cost.py`.

    `forward` is the forward run, `input` and `weight` are the halves of the backward run that make the gradients of
    what the stage is given and of its parameters. `kept_bytes` is what autograd keeps between them, but for parameters.
    """

    forward: int = 0
    input: int = 0
    weight: int = 0
    kept_bytes: int = 0

    @property
    def total(self) -> int:
        """The cost of the forward and the backward run."""
        return self.forward + self.input + self.weight


@dataclass(frozen=True)
class StageSpec:
    """A stage of `count`, without its graph.

    `received` and `sent` are in the order of the stage module's arguments and results. `inputs` are the batch inputs
    and prepared values that it is given by name. `outputs` are the names of the model's outputs, which the last stage
    returns, `loss` the one of them that is the loss, if any. `rank` is the rank along `pp` that runs the stage;
    `shared` maps each parameter that other ranks along `pp` hold too to all that hold it. `costs` are those of
    one microbatch, on a rank.
    """

    index: int
    count: int
    received: tuple[ValueSpec, ...] = ()
    sent: tuple[ValueSpec, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    loss: ValueSpec | None = None
    shared: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rank: int = 0
    costs: StageCosts = field(default_factory=StageCosts)

    @property
    def is_last(self) -> bool:
        """Whether the model's outputs are returned here."""
        return self.index == self.count - 1

    def groups(self) -> dict[str, list[str]]:
        """The shared parameters by the kind of group that sums their gradients, such as `pp[0,3]`."""
        kinds: dict[str, list[str]] = {}
        for name, ranks in self.shared.items():
            kinds.setdefault(f"pp[{','.join(map(str, ranks))}]", []).append(name)
        return kinds

    def to_json(self) -> dict[str, Any]:
        """The stage in dicts, lists, strings, numbers and bools."""
        return asdict(self) | {"shared": {name: list(ranks) for name, ranks in self.shared.items()}}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> StageSpec:
        """The stage that `to_json` wrote."""
        received, sent = (tuple(_value(value) for value in data[key]) for key in ("received", "sent"))
        inputs, outputs = tuple(data["inputs"]), tuple(data["outputs"])
        shared = {name: tuple(ranks) for name, ranks in data["shared"].items()}
        loss = _value(data["loss"]) if data["loss"] else None
        index, count, rank = data["index"], data["count"], data["rank"]
        costs = StageCosts(**data.get("costs", {}))
        return StageSpec(index, count, received, sent, inputs, outputs, loss, shared, rank, costs)


def _value(data: Mapping[str, Any]) -> ValueSpec:
    return ValueSpec(data["name"], tuple(data["shape"]), data["dtype"], data["requires_grad"])
