"""One rank held against the whole model: it takes a step, and every tensor that it has is compared with its part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxpar.checkpoint.weights import Box
from fxpar.runtime.groups import Groups
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.padding import Padding
from fxpar.runtime.rank import Rank
from fxpar.verification.objective import OBJECTIVE, Judged, judged
from fxpar.verification.reference import Reference, relative

#: The blocks of a tensor that a rank holds, by name.
BoxesOf = Callable[[str], Sequence[Box]]


@dataclass(frozen=True)
class Count:
    """Collectives of one kind over one kind of group in one phase: calls, and bytes that the rank sent."""

    collective: str
    group: str
    phase: str
    calls: int
    bytes: float


@dataclass(frozen=True)
class Findings:
    """The errors of one rank, relative as `Reference` says, and what one step sent. Outputs are the last stage's."""

    rank: int
    loss: float
    norm: float
    outputs: Mapping[str, float]
    gradients: Mapping[str, float]
    updates: Mapping[str, float]
    counts: tuple[Count, ...]

    def to_json(self) -> str:
        """The findings as text."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Findings:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return Findings(**{**data, "counts": tuple(Count(**count) for count in data["counts"])})


def judge(rank: Rank, reference: Reference) -> Rank:
    """The rank as it is where the model has a loss; else one whose last stage makes a loss of the latest outputs."""
    if not reference.roots:
        return rank
    *others, last = rank.stages
    if rank.pipeline.has_last:
        last = Judged(last, rank.current, rank.groups, reference.roots)
    manifest = judged(rank.manifest, reference.roots)
    return Rank([*others, last], manifest, rank.groups, prepare=rank.prepare, root=rank)


def check(rank: Rank, batch: Mapping[str, Any], boxes: BoxesOf, reference: Reference) -> Findings:
    """Run one step on a whole batch, let AdamW take one, and compare. Every rank has to call it."""
    batch = {**rank.manifest.literals, **batch}
    rank.bind((), batch)
    rank = judge(rank, reference)
    counter = rank.groups.counter
    counter.reset()
    loss, made = _step(rank, batch)
    counts = tuple(_counts(rank.groups))
    outputs = dict(_outputs(rank.manifest, rank.whole(made) if made is not None else [], reference))
    part = _Part(reference, boxes, rank.padding)
    learning = [p for p in rank.parameters() if p.requires_grad]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = float(rank.gradient_norm())
    gradients = part.errors("gradient", _gradients(rank))
    if learning:
        reference.optimizer(learning).step()
    return Findings(
        rank=rank.groups.rank,
        loss=_difference(float(loss), reference.loss, reference.scales["loss"]),
        norm=_difference(norm, reference.norm, reference.scales["norm"]),
        outputs=outputs,
        gradients=gradients,
        updates=part.errors("updated", _stored(rank)),
        counts=counts,
    )


def _step(rank: Rank, batch: Mapping[str, Any]) -> tuple[Tensor, list[tuple[Any, ...]] | None]:
    """As `Rank.step`, which gives the loss alone; and the outputs of each microbatch on the last stage."""
    given = rank.microbatches(rank.bind((), batch))
    with rank.reduction.around():
        loss, made = rank.pipeline.step(given, rank.specs, everywhere=True)
    assert loss is not None
    return loss, made


class _Part:
    """Compares a rank's tensors with their part of the whole ones, and their padding with zeros."""

    def __init__(self, reference: Reference, boxes: BoxesOf, padding: Padding) -> None:
        self.reference, self.boxes, self.padding = reference, boxes, padding
        self.known = frozenset(reference.tensors.names())

    def errors(self, what: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """The error of each tensor by name, of those that the reference has."""
        return {
            name: self._error(f"{what}:{name}", name, tensor)
            for name, tensor in tensors
            if f"{what}:{name}" in self.known
        }

    def _error(self, key: str, name: str, tensor: Tensor) -> float:
        whole = self.reference.tensors.read(key, self.boxes(name))
        return self.reference.error(key, tensor.detach().cpu(), self.padding.padded(name, whole))


def _gradients(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((name, p.grad) for name, p in module.named_parameters() if p.grad is not None)


def _stored(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _outputs(manifest: Manifest, outputs: Sequence[Any], reference: Reference) -> Iterable[tuple[str, float]]:
    for position, (spec, output) in enumerate(zip(manifest.outputs, outputs)):
        if isinstance(output, Tensor):
            key = f"output:{position}"
            yield spec.name, reference.error(key, output.detach().cpu(), reference.tensors.read(key))


def _difference(found: float, whole: float, scale: float) -> float:
    difference = abs(found - whole)
    return relative(difference, scale) if difference == difference else float("inf")


def _counts(groups: Groups) -> Iterable[Count]:
    for traffic, tally in sorted(groups.counter.tallies.items()):
        if traffic.phase != OBJECTIVE:
            yield Count(traffic.collective, traffic.group, traffic.phase, tally.calls, tally.bytes)
