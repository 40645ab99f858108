"""The manifest: what the runtime knows of a partitioned model, as plain data that goes through JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fxpar.condition import Condition
from fxpar.errors import EmitError
from fxpar.mesh import Mesh
from fxpar.pipeline.spec import StageSpec
from fxpar.runtime import plain, sizes
from fxpar.shard.overlap import Overlap

#: Raised whenever an older reader would misunderstand what is written.
FORMAT = 1


@dataclass(frozen=True)
class TensorSpec:
    """A parameter, buffer or constant: its global shape, what a rank holds, and what becomes of its gradient.

    `dims` are in factor notation, `placement` is in words; `split` are the mesh dims that split it, `reduce` those over
    which its gradient is summed, `overlaps` the parts of it that are summed over one of `split`, `stages` the pipeline
    stages that hold it. `uneven` has the dim that a mesh dim splits where it does not divide: the last ranks' parts end
    in padding there, which no file holds.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    dims: tuple[str, ...]
    placement: str
    split: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()
    stages: tuple[int, ...] = ()
    persistent: bool = True
    learns: bool = True
    rule: str = ""
    source: str = ""
    uneven: Mapping[str, int] = field(default_factory=dict)
    overlaps: tuple[Overlap, ...] = ()

    def held_shape(self, coordinate: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of what the rank at a coordinate holds of the tensor, without padding."""
        shape = list(self.local_shape)
        for mesh_dim, dim in self.uneven.items():
            shape[dim] = max(0, min(shape[dim], self.shape[dim] - coordinate[mesh_dim] * shape[dim]))
        return tuple(shape)


@dataclass(frozen=True)
class InputSpec:
    """An argument of the model: a tensor of this shape and dtype, or (dtype empty) the value that was captured.

    `default` says that the model takes the same value where a call leaves it out.
    """

    name: str
    placeholder: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    value: Any = None
    default: bool = False


@dataclass(frozen=True)
class AxisSpec:
    """An axis of the inputs whose size may differ from call to call.

    `size` is the example's. Any is a multiple of `multiple`, as `split` says in words, at least `least` and, where that
    is not None, at most `most`, for `reason`. `dealt` is the number of microbatches among `multiple` that it may be
    dealt out to in unequal parts.
    """

    name: str
    size: int
    multiple: int = 1
    split: str = ""
    least: int = 2
    most: int | None = None
    reason: str = ""
    dealt: int = 1


@dataclass(frozen=True)
class CutSpec:
    """How a tensor is cut: along `dim` into parts that interleave by `layout`, over a mesh dim of ranks or of time."""

    mesh_dim: str
    dim: int
    layout: tuple[int, ...]


@dataclass(frozen=True)
class PreparedSpec:
    """A value made of the whole batch, given to each microbatch: its part by `cut`, or as it is."""

    name: str
    cut: CutSpec | None = None


@dataclass(frozen=True)
class OutputSpec:
    """An output of the model: a tensor as the ranks hold it, or (dtype empty) a plain value.

    `gather` lists the cuts to undo over ranks, in order; `time` says how microbatches make the whole: `sum`, a cut, or
    nothing, where each has the same.
    """

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    gather: tuple[CutSpec, ...] = ()
    time: CutSpec | str | None = None
    value: Any = None


@dataclass(frozen=True)
class Manifest:
    """Everything of a partitioned model but its code and its weights."""

    source: str
    hash: str
    mesh: Mapping[str, int]
    schedule: str
    microbatches: int
    training: bool
    seed: int
    random: bool
    """Whether a forward call needs a seed."""
    inputs: tuple[InputSpec, ...]
    prepared: tuple[PreparedSpec, ...]
    outputs: tuple[OutputSpec, ...]
    loss: str | None
    stages: tuple[StageSpec, ...]
    tensors: Mapping[str, TensorSpec]
    ties: Mapping[str, str]
    groups: tuple[str, ...]
    """Every kind of group that some rank needs."""
    positional: tuple[str, ...] = ()
    """The names of the arguments of the model's forward by position; a last `*name` takes all further ones."""
    opaque: tuple[str, ...] = ()
    """The paths of the model's opaque modules, which are built from the model's source."""
    dynamic: tuple[AxisSpec, ...] = ()
    """The axes whose sizes may differ; shapes and layouts then have expressions of them."""
    conditions: tuple[Condition, ...] = ()
    """What else has to hold of the sizes of these axes."""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ranks: tuple[tuple[str, ...], ...] = ()
    """The files that each rank reads its tensors from, once they are written."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of every file that was written, but for this one."""
    format: int = FORMAT

    @property
    def grid(self) -> Mesh:
        """The mesh."""
        return Mesh(self.mesh)

    @property
    def literals(self) -> dict[str, Any]:
        """The inputs that are no tensors, as they were captured."""
        return {spec.name: spec.value for spec in self.inputs if not spec.dtype}

    def stages_of(self, rank: int) -> tuple[StageSpec, ...]:
        """The stages that a rank runs, in order."""
        place = self.grid.coordinate(rank).get("pp", 0)
        return tuple(stage for stage in self.stages if stage.rank == place)

    @property
    def virtual(self) -> int:
        """How many stages each rank runs."""
        return len(self.stages) // self.mesh.get("pp", 1)

    def at(self, lengths: Mapping[str, int]) -> Manifest:
        """The manifest where the dynamic axes have these sizes."""
        if not self.dynamic:
            return self
        names = ("inputs", "prepared", "outputs", "stages")
        return replace(self, **{name: sizes.at(getattr(self, name), lengths) for name in names})

    def to_json(self) -> str:
        """The manifest as text, the same for the same partition."""
        data = asdict(self) | {"stages": [stage.to_json() for stage in self.stages]}
        for entry in (*data["inputs"], *data["outputs"]):
            entry["value"] = plain.to_json(entry["value"])
        data = (
            sizes.written(data)
            if self.dynamic
            else {k: v for k, v in data.items() if k not in ("dynamic", "conditions")}
        )
        return json.dumps(data, indent=1, sort_keys=False) + "\n"

    @staticmethod
    def from_json(text: str, origin: str = "manifest.json") -> Manifest:
        """Read what `to_json` wrote. Raises EmitError, naming `origin`, for anything else."""
        try:
            data = json.loads(text)
            version = data["format"]
            if version != FORMAT:
                raise EmitError(
                    f"{origin} has format {version}, this fxpar reads {FORMAT}",
                    details=["partition the model again, or use the fxpar that wrote it"],
                )
            return _manifest(data)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise EmitError(f"{origin} is damaged", details=[str(error)]) from error

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a folder that `partition` wrote."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise EmitError(f"{folder} was not written by `fxpar partition`: it has no manifest.json")
        return Manifest.from_json(path.read_text(encoding="utf-8"), str(path))


def _manifest(data: dict[str, Any]) -> Manifest:
    dynamic = tuple(AxisSpec(**entry) for entry in data.get("dynamic", ()))
    example = {axis.name: axis.size for axis in dynamic}
    if dynamic:
        data = sizes.read(data, example)
    for entry in (*data["inputs"], *data["outputs"]):
        entry["value"] = plain.from_json(entry["value"], example)
    tuples = {
        "dynamic": dynamic,
        "conditions": tuple(Condition(**entry) for entry in data.get("conditions", ())),
        "inputs": tuple(InputSpec(**_tupled(entry)) for entry in data["inputs"]),
        "prepared": tuple(PreparedSpec(e["name"], _cut(e["cut"])) for e in data["prepared"]),
        "outputs": tuple(_output(entry) for entry in data["outputs"]),
        "stages": tuple(StageSpec.from_json(entry) for entry in data["stages"]),
        "tensors": {name: _tensor(entry) for name, entry in data["tensors"].items()},
        "groups": tuple(data["groups"]),
        "positional": tuple(data.get("positional", ())),
        "opaque": tuple(data["opaque"]),
        "notes": tuple(data["notes"]),
        "ranks": tuple(tuple(files) for files in data["ranks"]),
    }
    return Manifest(**(data | tuples))


def _tensor(entry: dict[str, Any]) -> TensorSpec:
    overlaps = tuple(
        Overlap(each["mesh_dim"], each["dim"], tuple(map(tuple, each["spans"]))) for each in entry["overlaps"]
    )
    return TensorSpec(**(_tupled(entry) | {"overlaps": overlaps}))


def _tupled(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def _cut(data: dict[str, Any] | None) -> CutSpec | None:
    return CutSpec(data["mesh_dim"], data["dim"], tuple(data["layout"])) if data else None


def _output(data: dict[str, Any]) -> OutputSpec:
    gather = tuple(cut for cut in map(_cut, data["gather"]) if cut)
    time = data["time"] if isinstance(data["time"], str) else _cut(data["time"])
    return OutputSpec(data["name"], data["dtype"], tuple(data["shape"]), gather, time, data["value"])


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
