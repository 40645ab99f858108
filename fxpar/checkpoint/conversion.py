"""A source and the layout that its tensors are to have: what will be written, and the proof that it can be."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fxpar.checkpoint import companions, dtypes, layout, proof
from fxpar.checkpoint.index import NAME, SHARDED, SINGLE, Index, metadata
from fxpar.checkpoint.layout import Layout, Slot
from fxpar.checkpoint.stored import Stored, refuse
from fxpar.checkpoint.transfer import Side, Transfer
from fxpar.errors import CheckpointError

#: Changes when the same journal would mean something else.
VERSION = 1


@dataclass(frozen=True)
class Conversion:
    """A source, the index of the target, and whether that is Hugging Face's layout.

    Of each file the header (compressed: with many tensors they are long), the byte at which each tensor starts, and all
    bytes.
    """

    source: Stored
    index: Index
    hf: bool
    headers: Mapping[str, bytes]
    starts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, source: Stored, index: Index, hf: bool) -> Conversion:
        """Lay out the files of an index. Raises CheckpointError that lists all that does not fit the source."""
        dropped = [name for name, tensor in source.index.tensors.items() if hf and tensor.of]
        wrong = [*proof.equal(source.index, index, dropped), *proof.sound(index), *_names(index, hf)]
        refuse("the target does not fit the source", wrong)
        headers, starts, sizes = {}, {}, {}
        for file in _files(index):
            laid = _lay(index, file, hf)
            headers[file], starts[file], sizes[file] = zlib.compress(laid.header, 1), laid.starts, laid.size
        made = cls(source, index, hf, headers, starts, sizes)
        refuse("tensors cannot be cut so", proof.whole_bytes(made.transfer(Path())))
        return made

    def transfer(self, folder: Path) -> Transfer:
        """The tasks that fill the files in a folder."""
        paths = {file: folder / file for file in self.sizes}
        return Transfer(self.source.side, Side(self.index, paths, lambda file, name: self.starts[file][name]))

    def header(self, file: str) -> bytes:
        """What a file begins with."""
        return zlib.decompress(self.headers[file])

    def texts(self, crc32: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        """The index by the name of its file, with the checksums of tensors by name and file."""
        if not self.hf:
            tensors = {
                name: replace(tensor, crc32=crc32.get(name, {}))
                for name, tensor in self.index.tensors.items()
            }
            return {NAME: replace(self.index, tensors=tensors).to_json()}
        if set(self.sizes) == {SINGLE}:
            return {}
        where = {name: next(iter(tensor.files)) for name, tensor in sorted(self.index.tensors.items())}
        data = {"metadata": {"total_size": self.bytes}, "weight_map": where}
        return {SHARDED: json.dumps(data, indent=2) + "\n"}

    @property
    def bytes(self) -> int:
        """The bytes of all whole tensors."""
        return sum(dtypes.size(tensor.dtype, tensor.shape) for tensor in self.index.tensors.values())

    @property
    def read(self) -> int:
        """The bytes of tensors that are read."""
        spans = (
            (name, span) for header in self.source.headers.values() for name, span in header.tensors.items()
        )
        return sum(span.stop - span.start for name, span in spans if name in self.index.tensors)

    def digest(self, tile: int) -> str:
        """A hash of all that the bytes of the target, and the tiles of so many bytes, depend on."""
        source = self.source
        seen = [
            [file, header.size, header.changed, header.digest]
            for file, header in sorted(source.headers.items())
        ]
        others = companions.stamps(source.root, source.companions)
        data = [
            VERSION,
            tile,
            str(source.root),
            seen,
            others,
            self.hf,
            replace(self.index, tensors={}).to_json(),
        ]
        found = hashlib.sha256(json.dumps(data).encode())
        for file in sorted(self.headers):  # With the boxes of all tensors.
            found.update(f"{file} {len(self.headers[file])} ".encode() + self.headers[file])
        return found.hexdigest()

    def check_room(self, folder: Path) -> None:
        """Raise CheckpointError if a disk has not the room for what `folder` does not have yet."""
        size = sum(self.sizes.values()) + companions.size(self.source.root, self.source.companions)
        needed = size - _used(folder)
        place = next(parent for parent in folder.parents if parent.is_dir())
        state = os.statvfs(place)
        free = state.f_bavail * state.f_frsize
        if needed > free:
            raise CheckpointError(
                f"there is not enough room in {place}: {needed} bytes are needed, and {free} are free"
            )

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file of the source is not what it was when its header was read."""
        refuse(
            f"{self.source.root} was changed while it was read",
            [f"{file} has another size or time of change" for file in self.source.changed()],
        )


def convert(source: Stored, target: Callable[[Index], Index], hf: bool) -> Conversion:
    """The conversion of a source to the layout that `target` gives for its index. Raises CheckpointError.

    Hugging Face's layout has no place for the state of training, neither tensors nor the rest of it.
    """
    if hf and source.ours:
        kept = tuple(name for name in source.companions if name != companions.STATE)
        source = replace(source, companions=kept)
    return Conversion.of(source, target(source.index), hf)


def _files(index: Index) -> list[str]:
    """The files that hold anything."""
    return list(dict.fromkeys(file for tensor in index.tensors.values() for file in tensor.files))


def _lay(index: Index, file: str, hf: bool) -> Layout:
    slots = [
        Slot(name, index.tensors[name].dtype, index.tensors[name].local_shape(file))
        for name in index.names(file)
    ]
    try:
        return layout.lay(slots, {"format": "pt"} if hf else metadata(index, file))
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be laid out: {error}") from error


def _names(index: Index, hf: bool) -> Iterable[str]:
    """Files of a target whose names cannot be, and tensors that Hugging Face's layout cannot hold."""
    for file in _files(index):
        if not file.endswith(".safetensors") or set(file) & set("/\\\0"):
            yield f"{file!r} is no name of a safetensors file"
    for name, tensor in index.tensors.items() if hf else ():
        if len(tensor.files) != 1 or any(len(parts) != 1 for parts in tensor.files.values()):
            yield f"`{name}` is not whole in one file, as Hugging Face's layout has it"


def _used(folder: Path) -> int:
    """The bytes on disk of the files of a folder, 0 if there is none."""
    try:
        return sum(entry.stat().st_blocks * 512 for entry in os.scandir(folder))
    except OSError:
        return 0
