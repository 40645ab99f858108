"""Where a checkpoint is written until it is whole: a folder beside its place, for one process at a time.

DST                    what is there already stays until the end
.DST.reshard/new       becomes DST
.DST.reshard/journal   what `new` has so far
.DST.reshard/old       what DST was, where a file system cannot swap two folders at once
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from fxpar.checkpoint.journal import Head, Journal
from fxpar.errors import CheckpointError

#: What tells a checkpoint, which may be replaced, from any other folder.
MARKS = ("fxpar.index.json", "model.safetensors", "model.safetensors.index.json", "manifest.json")


def check_target(destination: Path, force: bool) -> None:
    """Raise CheckpointError if a folder may not be written: it is there, and is not to be or cannot be replaced.

    Nor can it be where a file stands.
    """
    place = next(parent for parent in destination.absolute().parents if os.path.lexists(parent))
    if not place.is_dir():
        raise CheckpointError(f"{destination} cannot be written: {place.name} is no folder")
    if not os.path.lexists(destination):
        return
    if not force:
        raise CheckpointError(f"{destination} exists already", details=["--force replaces it"])
    if destination.is_symlink() or not destination.is_dir():
        raise CheckpointError(f"{destination} is no folder, and is not replaced")
    if any(destination.iterdir()) and not any((destination / name).is_file() for name in MARKS):
        raise CheckpointError(f"{destination} is no checkpoint, and is not replaced")


class Workplace:
    """The folder beside a destination, locked against other processes until `close`."""

    def __init__(self, destination: Path) -> None:
        """Make the folder, and the parents of the destination. Raises CheckpointError if another process has it."""
        self.destination = destination
        self.folder = folder_of(destination)
        self.new, self.old, self._journal = (self.folder / name for name in ("new", "old", "journal"))
        self._made = [parent for parent in destination.parents if not parent.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = _inode(self.folder) == os.fstat(self._lock).st_ino  # It was not removed in between.
        except BlockingIOError:
            same = False
        if not same:
            os.close(self._lock)
            raise CheckpointError(f"another process writes {destination}")
        self._ours = False
        self._restore()

    def _restore(self) -> None:
        """Give back what was there to the destination if it was lost between two renames."""
        if self.old.is_dir() and not os.path.lexists(self.destination):
            self.old.rename(self.destination)

    def finished(self, plan: str) -> bool:
        """Whether a run of the same plan was killed when nothing but its folder was left to remove."""
        self._ours = Journal.head(self._journal) == Head(plan, _inode(self.destination))
        return self._ours

    def begin(self, plan: str, resume: bool) -> Journal:
        """Give the journal of a new, empty folder, or with `resume` that of what is there of the same plan.

        Raises CheckpointError if what is there is of another plan or source.
        """
        head = Journal.head(self._journal) if resume else None
        if head is not None and head.plan != plan:
            raise CheckpointError(
                f"{self.folder.name} holds the beginning of another copy: the source or the target was another",
                details=["without --resume the copy starts anew"],
            )
        self._ours = True
        if head is not None and head.folder == _inode(self.new):
            return Journal(self._journal)
        self._clear()
        self.new.mkdir()
        return Journal.create(self._journal, Head(plan, _inode(self.new)))

    def _clear(self) -> None:
        """Remove everything, the journal last: as long as it is there, it tells whether the destination is finished."""
        self._restore()
        for folder in (self.new, self.old):
            shutil.rmtree(folder, ignore_errors=True)
        self._journal.unlink(missing_ok=True)

    def close(self, keep: bool) -> None:
        """Let others in. Unless what this process wrote is to be kept for later, nothing of it is left."""
        if self._ours and not keep:
            self._clear()
        with suppress(OSError):  # What others have begun stays.
            self.folder.rmdir()
            for parent in self._made:
                parent.rmdir()
        os.close(self._lock)


def folder_of(destination: Path) -> Path:
    """The folder in which a destination is written."""
    return destination.with_name(f".{destination.name}.reshard")


def _inode(path: Path) -> int:
    """The inode of a folder, 0 if it is not there."""
    try:
        return path.stat(follow_symlinks=False).st_ino
    except OSError:
        return 0
