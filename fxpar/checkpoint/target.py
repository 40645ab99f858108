"""The index of a checkpoint for another mesh, from what its own index says of axes and layers. No torch, no model.

Over each mesh dim a tensor is split by the first row of the table that names both it and one of the tensor's axes; over
`pp` the layers are dealt out in order (`stages.py`).

    tp = 4 over 2 heads of keys and values, each with 4 queries:  heads over 2, groups over the other 2
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

from fxpar.axes.factor import Cat, Dim, Factor, holds, holds_partly, leaves, size_of
from fxpar.axes.runs import dim_runs
from fxpar.checkpoint import notation
from fxpar.checkpoint.apart import apart
from fxpar.checkpoint.index import Index, Indexed, Part, file_name, shared
from fxpar.checkpoint.stages import stages
from fxpar.checkpoint.stored import refuse
from fxpar.errors import CheckpointError
from fxpar.mesh import MESH_DIMS, Mesh

#: Mesh dims of which a row may say that they split tensors, outermost first; over `pp` layers are dealt out.
SPLITTING = tuple(dim for dim in MESH_DIMS if dim != "pp")
#: Marks behind a mesh dim of a row, as of `fxpar.shard.table`.
OPTIONAL, UNEVEN = "?", "~"
#: The most ranks of a mesh, boxes of a tensor in a file, and sizes that an error proposes.
RANKS, BOXES, PROPOSED = 1 << 16, 1 << 20, 1024
#: What files of parameters and buffers, and those of optimizer state, begin with.
MODEL, OPTIMIZER = "model", "optimizer"


@dataclass(frozen=True)
class _Split:
    """A factor of a dim in `parts`: a rank has the part `at // each % parts` of its coordinate on a mesh dim."""

    mesh_dim: str
    axis: str
    dim: int
    factor: Factor
    parts: int
    each: int = 1


@dataclass
class _Tensor:
    """A tensor, its dims, and how they are split."""

    name: str
    indexed: Indexed
    read: notation.Read
    splits: list[_Split] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def find(self, axis: str) -> tuple[int, Factor] | None:
        """The dim and the factor of an axis that can split the tensor and does not yet: it stands in one dim alone."""
        taken = {split.factor for split in self.splits}
        for factor, name in self.read.axes.items():
            dims = [i for i, dim in enumerate(self.read.dims) if factor in leaves(dim)]
            if name == axis and factor not in taken and len(dims) == 1:
                dim = self.read.dims[dims[0]]
                if holds(dim, factor) or holds_partly(dim, factor):
                    return dims[0], factor
        return None

    def split(self, index: Index, mesh: Mesh) -> None:
        """Choose the splits; what does not divide is told in `problems`."""
        for mesh_dim in SPLITTING:
            size = mesh.sizes[mesh_dim]
            for axis, words in index.rows.items() if size > 1 else ():
                word = next((word for word in words if word.rstrip(OPTIONAL + UNEVEN) == mesh_dim), OPTIONAL)
                place = None if word.endswith(OPTIONAL) else self.find(axis)
                if place is not None:
                    self.splits += self._over(
                        mesh_dim, size, axis, *place, word.endswith(UNEVEN), index.extends
                    )
                    break
        if (
            count := prod(_pieces(dim, {each.factor for each in self.splits}) for dim in self.read.dims)
        ) > BOXES:
            self.problems.append(f"it would be cut into {count} boxes in a file, at most {BOXES} can be")

    def _over(
        self,
        mesh_dim: str,
        size: int,
        axis: str,
        dim: int,
        factor: Factor,
        uneven: bool,
        extends: Mapping[str, str],
    ) -> Iterator[_Split]:
        """One factor over a mesh dim; one that is too small takes a part of it, what extends its axis the rest."""
        if factor.size % size == 0 or (uneven and _leads(factor, self.read.dims[dim])):
            yield _Split(mesh_dim, axis, dim, factor, size)
        elif axis not in extends or size % factor.size:
            fits = [n for n in range(1, min(factor.size, PROPOSED) + 1) if factor.size % n == 0]
            self.problems.append(
                f"{axis} = {factor.size} does not divide over {mesh_dim} = {size}: "
                f"{mesh_dim} may be {_or(fits)}"
            )
        else:
            rest, other = size // factor.size, self.find(extends[axis])
            yield _Split(mesh_dim, axis, dim, factor, factor.size, rest)
            if other is not None and other[1].size % rest:
                self.problems.append(
                    f"{axis} = {factor.size} and {extends[axis]} = {other[1].size} do not divide over "
                    f"{mesh_dim} = {size}"
                )
            elif other is not None:
                yield _Split(mesh_dim, extends[axis], *other, rest)

    def parts(self, spot: Mapping[str, int]) -> tuple[Part, ...]:
        """The boxes of the rank at a coordinate."""
        chosen = {s.factor: (s.parts, spot[s.mesh_dim] // s.each % s.parts) for s in self.splits}
        runs = [
            dim_runs(dim, {f: c for f, c in chosen.items() if f in leaves(dim)}) for dim in self.read.dims
        ]
        return shared(
            tuple(
                Part(tuple(r[0] for r in place), tuple(r[2] for r in place), tuple(r[1] for r in place))
                for place in product(*runs)
            )
        )


def _leads(factor: Factor, dim: Dim) -> bool:
    """Whether a part of a factor is one run of a dim: then the last one may be shorter, and leaves no holes."""
    return factor in dim and size_of(dim[: dim.index(factor)]) == 1


def _pieces(dim: Dim, split: set[Factor]) -> int:
    """At most so many runs of a dim are left when some of its factors are split."""
    last = max((at for at, term in enumerate(dim) if split & set(leaves((term,)))), default=None)
    if last is None:
        return 1
    term = dim[last]
    return size_of(dim[:last]) * (
        sum(_pieces(each, split) for each in term.parts) if isinstance(term, Cat) else 1
    )


def _read(name: str, indexed: Indexed) -> _Tensor:
    try:
        return _Tensor(name, indexed, notation.sized(indexed.dims, indexed.shape))
    except CheckpointError as error:
        raise CheckpointError(f"`{name}` {list(indexed.shape)}: {error}") from error


def target(index: Index, sizes: Mapping[str, int], virtual: int = 1, schedule: str = "1f1b") -> Index:
    """The index of the same tensors for another mesh; `virtual` stages go to each `pp` rank, as the schedule has it.

    `sizes` are those of the mesh dims that are not 1; ranks that hold the same share files. Raises
    CheckpointError that lists every axis that does not divide, with the sizes that would do, and for more stages than
    layers.
    """
    if unknown := [dim for dim in sizes if dim not in MESH_DIMS]:
        raise CheckpointError(f"`{unknown[0]}` is no mesh dim: those are {', '.join(MESH_DIMS)}")
    mesh = Mesh({dim: sizes.get(dim, 1) for dim in MESH_DIMS})
    if not 1 <= mesh.world <= RANKS:
        raise CheckpointError(f"the mesh {dict(sizes)} has {mesh.world} ranks: it may have 1 to {RANKS}")
    holders = stages(index, mesh.sizes["pp"], virtual, schedule)
    tensors = [_read(name, each) for name, each in index.tensors.items()]
    for tensor in tensors:
        tensor.split(index, mesh)
    refuse("the checkpoint cannot be split so", _problems(tensors))
    over = [
        {split.mesh_dim for tensor in tensors if pp in holders[tensor.name] for split in tensor.splits}
        for pp in range(mesh.sizes["pp"])
    ]
    spots = [_spot(mesh.coordinate(rank), over) for rank in range(mesh.world)]
    placed = {tensor.name: _placed(tensor, mesh, spots, holders[tensor.name]) for tensor in tensors}
    ranks = tuple(file_name(MODEL, spot) for spot in spots)
    return replace(index, mesh=dict(mesh.sizes), ranks=ranks, tensors=placed)


def _problems(tensors: Sequence[_Tensor]) -> list[str]:
    """What does not divide, each once, with the first tensor of it and how many others there are."""
    found: dict[str, list[str]] = {}
    for tensor in tensors:
        for problem in tensor.problems:
            found.setdefault(problem, []).append(tensor.name)
    more = {
        problem: f" and {len(names) - 1} more" if len(names) > 1 else "" for problem, names in found.items()
    }
    return [f"`{names[0]}`{more[problem]}: {problem}" for problem, names in found.items()]


def _spot(coordinate: Mapping[str, int], over: Sequence[set[str]]) -> dict[str, int]:
    """A rank's coordinates on those mesh dims that make a difference to what it holds."""
    dims = over[coordinate["pp"]]
    return {dim: at for dim, at in coordinate.items() if dim == "pp" or dim in dims}


def _placed(
    tensor: _Tensor, mesh: Mesh, spots: Sequence[Mapping[str, int]], holders: Sequence[int]
) -> Indexed:
    family = OPTIMIZER if tensor.indexed.of else MODEL
    held = {file_name(family, spot): tensor.parts(spot) for spot in spots if spot["pp"] == holders[0]}
    files = apart(tensor.indexed.shape, held)
    words = {split.mesh_dim: f"Shard({split.dim}, {split.axis})" for split in reversed(tensor.splits)}
    several = [dim for dim, size in mesh.sizes.items() if size > 1 and dim != "pp"]
    placement = {dim: words.get(dim, "Replicate") for dim in several}
    return replace(tensor.indexed, files=files, placement=placement, crc32={})


def _or(sizes: Sequence[int]) -> str:
    words = [str(size) for size in sizes]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
