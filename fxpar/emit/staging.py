"""A folder that appears whole or not at all: it is written beside its place and renamed at the end."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxpar.checkpoint.commit import put
from fxpar.errors import EmitError

#: What tells a folder of ours, which may be replaced, from any other: a file and keys that it has.
OURS = {"manifest.json": {"mesh", "stages", "tensors"}, "fxpar.index.json": {"mesh", "ranks"}}


def check_target(folder: Path, force: bool | None = False) -> None:
    """Raise EmitError if a folder cannot be written: it exists and may not be replaced, or has no place to stand.

    `force` is None where whoever asks has no choice: what is there is never replaced.
    """
    place = _nearest(folder)
    if not place.is_dir():
        raise EmitError(f"{folder} cannot be written: {place.name} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise EmitError(f"{folder} cannot be written: no permission to write into {place.name or place}")
    if not folder.exists() and not folder.is_symlink():
        return
    if not force:
        way = "name another folder" if force is None else "--force replaces it"
        raise EmitError(f"{folder} exists already", details=[way])
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.is_symlink() or not (empty or any(_has(folder / name, keys) for name, keys in OURS.items())):
        raise EmitError(f"{folder} was not written by fxpar, and is not replaced")


def _has(file: Path, keys: set[str]) -> bool:
    """Whether a file is JSON, a mapping with those keys."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.keys() >= keys


@contextmanager
def staged(folder: Path, force: bool | None = False) -> Iterator[Path]:
    """Give an empty folder to write to; when the block ends without an error it becomes `folder`.

    With `force` it then replaces what is there. After an error nothing is left, and what was there stays as it was;
    what a process leaves that is killed goes when the same folder is written again.
    Raises EmitError as `check_target`.
    """
    check_target(folder, force)
    folder = folder.absolute()
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    _sweep(folder)
    made = _absent_parents(folder)
    new.mkdir(parents=True)
    lock = _locked(new)
    try:
        yield new
        check_target(folder, force)
        _replace(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _locked(new: Path) -> int | None:
    """A lock on a folder, which ends with the process that has it; None if another one has it, or none can be had."""
    try:
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed had begun to write for the same folder."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.\d+\.new")
    for entry in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if name.fullmatch(entry.name) and (lock := _locked(entry)) is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)


def _absent_parents(folder: Path) -> list[Path]:
    """The parents of a folder that do not exist yet, innermost first."""
    return [parent for parent in folder.absolute().parents if not parent.exists()]


def _nearest(folder: Path) -> Path:
    """The innermost parent of a folder that exists."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def _replace(new: Path, folder: Path) -> None:
    """Give the new folder its name, by a swap where something is there, and remove what was."""
    old = new.with_suffix(".old")
    put(new, folder, old, force=True)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
