"""A checkpoint on disk: fxpar's layout or Hugging Face's, with all headers read and held against the index.

fxpar.index.json                   fxpar's layout
model.safetensors.index.json       Hugging Face's, in several files
model.safetensors                  Hugging Face's, in one file; or any one safetensors file
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fxpar.checkpoint import companions, header, jsonfile, paths, proof
from fxpar.checkpoint.header import Header
from fxpar.checkpoint.index import NAME, SHARDED, SINGLE, Index, Indexed, Part
from fxpar.checkpoint.transfer import Side
from fxpar.errors import CheckpointError

#: A file of several, as `model-00001-of-00003.safetensors`.
_NUMBERED = re.compile(r"(.+)-\d+-of-(\d+)\.safetensors")
#: The most lines of an error, and letters of a line: names may be of any length.
LINES, LETTERS = 50, 1000


@dataclass(frozen=True)
class Stored:
    """A checkpoint: its folder, whether it is fxpar's layout, its index, its files' headers, other files to copy.

    In Hugging Face's layout every tensor is one box, whole, and nothing is known of its dims.
    """

    root: Path
    ours: bool
    index: Index
    headers: Mapping[str, Header]
    companions: tuple[str, ...]

    @property
    def side(self) -> Side:
        """Where the bytes of each tensor start in each file."""
        paths = {file: self.root / file for file in self.headers}
        return Side(self.index, paths, lambda file, name: self.headers[file].start(name))

    def changed(self) -> list[str]:
        """The files that are not what they were when their headers were read."""
        return [file for file, header in self.headers.items() if not header.unchanged()]


def open_folder(path: Path) -> Stored:
    """Read the headers and the index of a checkpoint: a folder, or one safetensors file.

    Raises CheckpointError that lists all that is wrong: files that are missing, damaged or lead out of the folder,
    tensors that an index has and no file, and the reverse, boxes that are missing or overlap.
    """
    try:
        if path.is_dir():
            return _opened(path.resolve())
        if path.is_file():
            return _single(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    raise CheckpointError(f"{path} is no folder and no file")


def _opened(root: Path) -> Stored:
    """The checkpoint of a folder: an index that cannot be read is not passed over for what lies beside it."""
    if found := next((name for name in (NAME, SHARDED) if os.path.lexists(root / name)), None):
        if fault := paths.fault(root, found):
            raise CheckpointError(f"{root / found} {fault}")
        return _ours(root) if found == NAME else _foreign(root, _weight_map(root / SHARDED))
    if os.path.lexists(root / SINGLE):
        return _foreign(root, None, [SINGLE])
    raise CheckpointError(f"{root} is no checkpoint", details=[f"it has no {NAME}, {SHARDED} or {SINGLE}"])


def _single(path: Path) -> Stored:
    """One file, or what a link to one leads to: whoever names a link means it."""
    if paths.fault(path.parent, path.name):
        path = path.resolve()
    return _foreign(path.parent.resolve(), None, [path.name], alone=True)


def _ours(root: Path) -> Stored:
    index = Index.read(root)
    wrong = proof.sound(index) + proof.dims(index)
    held = {file for tensor in index.tensors.values() for file in tensor.files}
    ranks = sorted(set(index.ranks) - held)
    empty = {rank for rank in ranks if paths.plain(rank) and os.path.lexists(root / rank)}
    headers, faults = _headers(root, sorted(held | empty), lambda file, each: labelled(index, file, each))
    faults += [f"{rank} is not a plain file name" for rank in ranks if not paths.plain(rank)]
    refuse(
        f"{root} is no whole checkpoint",
        [*faults, *wrong, *(proof.agree(index, headers) if not wrong else [])],
    )
    return Stored(root, True, index, headers, _companions(root))


def _foreign(
    root: Path, where: Mapping[str, str] | None, files: Sequence[str] = (), *, alone: bool = False
) -> Stored:
    """A checkpoint in Hugging Face's layout: `where` is the file of each tensor, or all that the `files` have."""
    headers, wrong = _headers(root, sorted(set(where.values())) if where is not None else files, _piece)
    wrong += [] if where is None else _strays(root, set(where.values()))
    if where is None:
        where = {name: file for file in headers for name in headers[file].tensors}
    for file, each in headers.items():
        wrong += [
            f"{file}: `{name}` is in the file, and not there by {SHARDED}"
            for name in each.tensors
            if where.get(name) != file
        ]
    lost = [
        f"{file}: `{name}` is in {SHARDED}, and not in the file"
        for name, file in where.items()
        if file in headers and name not in headers[file].tensors
    ]
    refuse(f"{root} is no whole checkpoint", [*wrong, *lost])
    digest = hashlib.sha256("".join(headers[file].digest for file in sorted(headers)).encode()).hexdigest()
    tensors = {name: _whole(headers[file], name, file) for name, file in sorted(where.items())}
    index = Index(root.name, digest, {}, tuple(sorted(headers)), tensors)
    return Stored(root, False, index, headers, () if alone else _companions(root))


def _strays(root: Path, named: set[str]) -> list[str]:
    """Files that belong to the same checkpoint by their names, whose tensors would be lost without a word."""
    sets = {found.groups() for file in named if (found := _NUMBERED.fullmatch(file))}

    def belongs(file: str) -> bool:
        found = _NUMBERED.fullmatch(file)
        return file == SINGLE or (found is not None and (not named or found.groups() in sets))

    return [
        f"{file} is there, and not in {SHARDED}"
        for file in sorted(os.listdir(root))
        if file not in named and belongs(file)
    ]


def _whole(header: Header, name: str, file: str) -> Indexed:
    span = header.tensors[name]
    zeros = (0,) * len(span.shape)
    return Indexed(
        span.dtype, span.shape, tuple(map(str, span.shape)), {}, {file: (Part(zeros, span.shape, zeros),)}
    )


def _headers(
    root: Path, files: Iterable[str], check: Callable[[str, Header], list[str]]
) -> tuple[dict[str, Header], list[str]]:
    """The headers of files, and what is wrong with them. Metadata as long as the index is checked, and not kept."""
    found, wrong = {}, []
    for file in files:
        if fault := paths.fault(root, file):
            wrong.append(f"{file} {fault}")
            continue
        try:
            each = header.read(root / file)
        except CheckpointError as error:
            wrong.append(str(error).replace(f"{root}/", "", 1))
            continue
        wrong += check(file, each)
        kept = {key: text for key, text in each.metadata.items() if key in ("format", "DCP_VERSION")}
        found[file] = replace(each, metadata=kept)
    return found, wrong


def labelled(index: Index, file: str, header: Header) -> list[str]:
    """Where a file says of itself that it is another one: files that were swapped have the same shapes."""
    if "fxpar" not in header.metadata:
        return []
    try:
        own = json.loads(header.metadata["fxpar"], object_hook=lambda found: found.get("files", found))
        name, tensors = own["file"], own["tensors"]
        boxes = {key: tensors[key][name] for key in tensors}
    except (ValueError, LookupError, TypeError, RecursionError):
        return [f"{file}: its metadata is damaged"]
    if name != file:
        return [f"{file} was written as {name}"]
    return [
        f"{file}: `{key}` was written as {boxes[key]}, and the index has {_plain(index.tensors[key].files[file])}"
        for key in boxes
        if key in index.tensors
        and file in index.tensors[key].files
        and boxes[key] != _plain(index.tensors[key].files[file])
    ]


def _plain(parts: Sequence[Part]) -> list[list[list[int]]]:
    return [[list(numbers) for numbers in part] for part in parts]


def _piece(file: str, header: Header) -> list[str]:
    """Why the tensors of a file are not whole ones."""
    if "fxpar" in header.metadata:
        return [f"{file} is a part of a checkpoint of fxpar, and {NAME} is not beside it"]
    try:
        offsets = json.loads(header.metadata.get("DCP_SHARDING_INFO", "{}"))
        cut = any(any(entry["saved_offsets"]) for entry in offsets.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return [f"{file}: its DCP_SHARDING_INFO is damaged"]
    return [f"{file} has parts of tensors, as torch.distributed.checkpoint writes them"] if cut else []


def _companions(root: Path) -> tuple[str, ...]:
    names, wrong = companions.names(root)
    refuse(f"{root} has files that cannot be copied", wrong)
    return names


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found: Any = json.loads(jsonfile.text(path), object_pairs_hook=jsonfile.once)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: no `weight_map` can be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{path}: `weight_map` does not map keys to files")
    return found


def refuse(what: str, wrong: Sequence[str]) -> None:
    """Raise CheckpointError with all that is wrong, if anything is."""
    if wrong:
        rest = [f"... and {len(wrong) - LINES} more"] if len(wrong) > LINES else []
        raise CheckpointError(what, details=[*(f"{line:.{LETTERS}}" for line in wrong[:LINES]), *rest])
