"""Loading one rank of a folder that `fxpar partition` wrote, from that rank's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from fxpar.capture.leaves import Leaves, leaves_of
from fxpar.capture.source import find
from fxpar.checkpoint.index import LAYOUT, Index
from fxpar.checkpoint.index import NAME as INDEX
from fxpar.checkpoint.local import read as read_parts
from fxpar.checkpoint.weights import FileWeights, TensorWeights, files_of
from fxpar.errors import CheckpointError, EmitError
from fxpar.runtime.assemble import Read, assemble
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.manifest import Manifest, TensorSpec, dtype_name
from fxpar.runtime.processes import connect, current_device
from fxpar.runtime.random import stream_seed
from fxpar.runtime.rank import Rank
from fxpar.runtime.restore import reader

#: The standard deviation of parameters that are drawn because the folder has no weights.
DEVIATION = 0.02
#: Files of a partition that belong into no checkpoint.
_OWN = (".py", ".safetensors", ".yaml")


def load(
    folder: str | Path,
    groups: Groups | None = None,
    device: torch.device | str | None = None,
    weights: str | Path | None = None,
) -> Rank:
    """Load the rank that `groups` belong to; without them, that of this process under torchrun.

    A partition for one rank needs no process group. Only the rank's own part is read, and nothing is unpickled.
    `device` defaults to this process's accelerator, or the CPU. In a folder without weights every parameter is drawn
    from the plan's seed and its name, with the same global values in every layout.

    `weights` is a checkpoint whose parameters and persistent buffers are read instead: a folder that `Rank.save` or
    `fxpar partition` wrote for any mesh, or one in Hugging Face's layout with the model's names. Of it the rank reads
    its own part. Raises CheckpointError that lists all names, shapes and dtypes that are not the partition's.

    Raises EmitError for a module that was changed since it was written, or files that do not fit the manifest;
    RankError where there are not as many processes as ranks.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    place = torch.device(device) if device is not None else current_device()
    groups = groups if groups is not None else _groups(manifest, place)
    names = [f"stage_{spec.index}.py" for spec in manifest.stages_of(groups.rank)]
    names += ["prepare.py"] if manifest.prepared else []
    modules = {name: checked_text(folder, manifest, name) for name in names}
    given = Path(weights) if weights is not None else None
    read = _reader(folder, manifest, groups.rank, given)
    rank = assemble(manifest, modules, groups, read, device=place, leaves=opaque_modules(manifest))
    rank.layout = partial(layout, folder, manifest)
    rank.companions = companions(folder, manifest)
    return rank


def layout(folder: Path, manifest: Manifest) -> Index:
    """The index of the files that a checkpoint of this partition has. Raises EmitError, CheckpointError."""
    name = INDEX if INDEX in manifest.files else LAYOUT
    return Index.from_json(checked_text(folder, manifest, name), name)


def companions(folder: Path, manifest: Manifest) -> list[Path]:
    """What came with the model, and belongs into its checkpoints: its configuration, its tokenizer."""
    names = (name for name in manifest.files if Path(name).suffix not in _OWN and name not in (INDEX, LAYOUT))
    return [folder / name for name in names]


def opaque_modules(manifest: Manifest) -> Leaves:
    """The opaque modules of a model, from its source, without tensors.

    Raises EmitError for a partition of a module that no text names: there is nothing to build them from.
    """
    if not manifest.opaque:
        return Leaves()
    if not manifest.source:
        raise EmitError(
            f"the opaque module `{manifest.opaque[0]}` cannot be built: the manifest has no source",
            details=["partition the model by its text (`model.py`, `package.module:Model`), not as a module"],
        )
    model = find(manifest.source).build().train(manifest.training)
    double = any(spec.dtype == "float64" for spec in manifest.tensors.values() if spec.kind == "parameter")
    return leaves_of(model, manifest.opaque, double=double)


def _groups(manifest: Manifest, device: torch.device) -> Groups:
    if manifest.grid.world == 1:
        return alone(manifest.grid)
    return connect(manifest.grid, manifest.groups, device=device)


def checked_text(folder: Path, manifest: Manifest, name: str) -> str:
    """The text of a file that was written with the manifest. Raises EmitError if it is another one now."""
    path = inside(folder, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EmitError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != manifest.files.get(name):
        raise EmitError(
            f"{path} is not what `fxpar partition` wrote",
            details=["it was changed, or comes from another partition: partition the model again"],
        )
    return data.decode()


def inside(folder: Path, name: str) -> Path:
    """The path of a file that the manifest names. Raises EmitError for a name that leads out of the folder."""
    path = folder / name
    if Path(name).name != name or path.resolve().parent != folder.resolve():
        raise EmitError(f"manifest.json names `{name}`, which is no file of {folder}")
    return path


def _reader(folder: Path, manifest: Manifest, rank: int, checkpoint: Path | None) -> Read:
    """Reads the tensors of a rank by name: what a checkpoint holds from the given one, the rest from the folder."""
    if rank >= len(manifest.ranks):
        raise EmitError(f"manifest.json names no files for rank {rank}", details=["it is damaged"])
    if checkpoint is None:
        return _folder_reader(folder, manifest, rank, manifest.ranks[rank])
    whole = layout(folder, manifest)
    given = reader(whole, rank, manifest, checkpoint)
    besides = [name for name in manifest.ranks[rank] if name not in whole.ranks]
    own = _folder_reader(folder, manifest, rank, besides)
    return lambda name: (given if manifest.ties.get(name, name) in whole.tensors else own)(name)


def _folder_reader(folder: Path, manifest: Manifest, rank: int, names: Sequence[str]) -> Read:
    """Reads the tensors of a rank by name from files of the folder, or draws them."""
    paths = [inside(folder, name) for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise EmitError(f"{folder} lacks files of rank {rank}", details=missing)
    files = FileWeights({key: path for path in paths for key in files_of(path)})
    drawn = _Drawn(layout(folder, manifest), manifest, rank) if LAYOUT in manifest.files else None
    ties: Mapping[str, str] = manifest.ties

    def read(name: str) -> torch.Tensor:
        name = ties.get(name, name)
        spec = manifest.tensors.get(name)
        if drawn is not None and spec is not None and spec.kind == "parameter":
            return drawn.read(name)
        _fits(name, spec, files, manifest.grid.coordinate(rank))
        return files.read(name)

    return read


def _fits(name: str, spec: TensorSpec | None, files: FileWeights, coordinate: Mapping[str, int]) -> None:
    """Raise CheckpointError if a tensor of a file is not as the manifest says; the module checks those it omits."""
    found = files.shape(name), dtype_name(files.dtype(name))
    if spec is not None and found != (spec.held_shape(coordinate), spec.dtype):
        wanted = f"{spec.dtype}{list(spec.held_shape(coordinate))}"
        raise CheckpointError(f"`{name}` is {found[1]}{list(found[0])} in its file, not {wanted}")


class _Drawn:
    """Parameters drawn from a seed and their names."""

    def __init__(self, layout: Index, manifest: Manifest, rank: int) -> None:
        self._layout, self._rank, self._seed = layout, rank, manifest.seed
        self._dtypes = {name: getattr(torch, spec.dtype) for name, spec in manifest.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """The rank's part; the whole parameter is drawn for it."""
        whole = draw(name, self._layout.tensors[name].shape, self._seed)
        parts = self._layout.parts_of(self._rank, name)
        return read_parts(TensorWeights({name: whole}), name, parts, self._dtypes[name])


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A whole parameter, in float32: normal numbers from a stream that depends on the seed and the name alone."""
    stream = stream_seed(seed, list(name.encode()))
    return torch.randn(shape, generator=torch.Generator().manual_seed(stream)).mul_(DEVIATION)
