"""The report of a verification: how far the ranks are from the whole model, where, and what a step sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod

import torch

from fxpar.explanation import rule_of
from fxpar.passes import Partition
from fxpar.runtime.manifest import Manifest, TensorSpec
from fxpar.shard.overlap import common, sum_text
from fxpar.verification.compare import Count, Findings
from fxpar.verification.reference import Reference


@dataclass(frozen=True)
class Row:
    """One parameter or buffer: the worst errors over the ranks that hold it, where it lies, and the rule behind that.

    `gradient` is None for what does not learn. `rank` is the one with the worst error, None where no rank holds it.
    """

    name: str
    kind: str
    gradient: float | None
    update: float
    rank: int | None
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    dims: tuple[str, ...]
    placement: str
    reduce: tuple[str, ...]
    stages: tuple[int, ...]
    rule: str
    source: str

    @property
    def worst(self) -> float:
        """The worse of both errors."""
        return max(self.gradient or 0.0, self.update)


@dataclass(frozen=True)
class Report:
    """What came of a verification. Errors are relative (see `Reference`), and the worst over all ranks."""

    mesh: Mapping[str, int]
    dtype: str
    tolerance: float
    simulated: bool
    loss_error: float
    norm_error: float
    outputs: Mapping[str, float]
    """The error of each output."""
    rows: tuple[Row, ...]
    """Every parameter and buffer, in the order of the model."""
    sharded_fraction: float
    """The share of the parameters' bytes that are split over some mesh dim."""
    draws: int
    """How many ops draw random numbers; the whole model was given those of the ranks."""
    seed: int
    """What all random numbers start from."""
    collectives: tuple[Count, ...]
    """What one step sends, forward, backward and for the gradients: by one rank of each stage together."""
    sizes: tuple[Mapping[str, int], ...] = ()
    """The sizes of the dynamic axes that it was verified at."""

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return prod(self.mesh.values())

    @property
    def gradient_error(self) -> float:
        """The worst error of a gradient."""
        return max((row.gradient or 0.0 for row in self.rows), default=0.0)

    @property
    def parameter_error(self) -> float:
        """The worst error of a parameter or buffer after one step of AdamW."""
        return max((row.update for row in self.rows), default=0.0)

    @property
    def output_error(self) -> float:
        """The worst error of an output."""
        return max(self.outputs.values(), default=0.0)

    @property
    def ok(self) -> bool:
        """Whether everything is within the tolerance."""
        parts = (
            self.loss_error,
            self.norm_error,
            self.output_error,
            self.gradient_error,
            self.parameter_error,
        )
        return all(error <= self.tolerance for error in parts)

    @property
    def worst_row(self) -> Row | None:
        """The parameter or buffer with the worst error; None if there are none."""
        return max(self.rows, key=lambda row: row.worst, default=None)

    @property
    def worst_parameter(self) -> str:
        """The name of the parameter or buffer with the worst error; empty if there are none."""
        return self.worst_row.name if self.worst_row else ""

    @property
    def first_wrong(self) -> Row | None:
        """The first parameter or buffer, in the order of the model, that is beyond the tolerance."""
        return next((row for row in self.rows if row.worst > self.tolerance), None)

    def calls(
        self, collective: str | None = None, *, group: str | None = None, phase: str | None = None
    ) -> int:
        """How many collectives one step makes: all, or those of one kind, group (`tp`) or phase."""
        wanted = {"collective": collective, "group": group, "phase": phase}
        chosen = {key: value for key, value in wanted.items() if value is not None}
        return sum(
            count.calls
            for count in self.collectives
            if all(getattr(count, k) == v for k, v in chosen.items())
        )

    def to_json(self) -> str:
        """The report as JSON; an error that is no number is written as a string."""
        made = ("ok", "ranks", "output_error", "gradient_error", "parameter_error", "worst_parameter")
        data = {key: getattr(self, key) for key in made} | asdict(self)
        wrong = self.first_wrong
        data["first_wrong"] = {"name": wrong.name, "rule": wrong.rule} if wrong else None
        return json.dumps(_finite(data), indent=2)

    def text(self) -> str:
        """The report as a table."""
        from fxpar.verification.text import report_text

        return report_text(self)


def merge(
    partition: Partition,
    reference: Reference,
    findings: Sequence[Findings],
    *,
    simulated: bool,
    sizes: Mapping[str, int] | None = None,
) -> Report:
    """Make one report of what all ranks found."""
    manifest = partition.manifest
    compared = frozenset(reference.tensors.names())
    specs = [spec for name, spec in manifest.tensors.items() if f"updated:{name}" in compared]
    return Report(
        mesh=dict(manifest.mesh),
        dtype=reference.dtype,
        tolerance=reference.tolerance,
        simulated=simulated,
        loss_error=max(each.loss for each in findings),
        norm_error=max(each.norm for each in findings),
        outputs=_worst(each.outputs for each in findings),
        rows=tuple(_row(spec, rule_of(partition, spec.name), findings) for spec in specs),
        sharded_fraction=_fraction(manifest),
        draws=len(partition.sharded.draws),
        seed=manifest.seed,
        collectives=tuple(_counts(manifest, findings)),
        sizes=(dict(sizes),) if sizes else (),
    )


def joined(reports: Sequence[Report]) -> Report:
    """One report of several of one partition at different sizes: the worst errors, and what the first one sends."""
    first = reports[0]
    if len(reports) == 1:
        return first
    return replace(
        first,
        loss_error=max(each.loss_error for each in reports),
        norm_error=max(each.norm_error for each in reports),
        outputs=_worst(each.outputs for each in reports),
        rows=tuple(
            max(same, key=lambda row: row.worst)
            for same in zip(*(each.rows for each in reports), strict=True)
        ),
        sizes=tuple(size for each in reports for size in each.sizes),
    )


def _row(spec: TensorSpec, rule: str, findings: Sequence[Findings]) -> Row:
    holders = [each for each in findings if spec.name in each.updates]
    learns = spec.kind == "parameter" and spec.learns
    gradients = [each.gradients.get(spec.name, float("inf")) for each in holders] if learns else []
    worst = max(
        holders,
        key=lambda each: max(each.gradients.get(spec.name, 0.0), each.updates[spec.name]),
        default=None,
    )
    return Row(
        name=spec.name,
        kind=spec.kind,
        gradient=max(gradients, default=float("inf")) if learns else None,
        update=max((each.updates[spec.name] for each in holders), default=float("inf")),
        rank=worst.rank if worst else None,
        shape=spec.shape,
        local_shape=spec.local_shape,
        dims=spec.dims,
        placement=spec.placement,
        reduce=(*spec.reduce, *(sum_text(overlap) for overlap in spec.overlaps)),
        stages=spec.stages,
        rule=rule,
        source=spec.source,
    )


def _worst(errors: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in errors:
        for name, error in each.items():
            found[name] = max(error, found.get(name, 0.0))
    return found


def _fraction(manifest: Manifest) -> float:
    """The share of the parameters' bytes that are split."""
    parameters = [spec for spec in manifest.tensors.values() if spec.kind == "parameter"]
    total = sum(_bytes(spec) for spec in parameters)
    return sum(_split_bytes(spec) for spec in parameters if spec.split) / total if total else 0.0


def _bytes(spec: TensorSpec) -> int:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return prod(spec.shape) * dtype.itemsize


def _split_bytes(spec: TensorSpec) -> int:
    """The bytes of a split tensor that not every rank has."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return _bytes(spec) - common(spec.local_shape, spec.split, spec.overlaps) * dtype.itemsize


def _counts(manifest: Manifest, findings: Sequence[Findings]) -> Iterable[Count]:
    """The sum over the first rank of every stage."""
    sums: dict[tuple[str, str, str], tuple[int, float]] = {}
    for each in findings:
        coordinate = manifest.grid.coordinate(each.rank)
        if any(index for dim, index in coordinate.items() if dim != "pp"):
            continue
        for count in each.counts:
            key = (count.collective, count.group, count.phase)
            calls, size = sums.get(key, (0, 0.0))
            sums[key] = (calls + count.calls, size + count.bytes)
    return (Count(*key, *sums[key]) for key in sorted(sums))


def _finite(value: object) -> object:
    """The same with infinite numbers as strings, which JSON has not."""
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
