"""Gives a checkpoint another layout: proved before the first byte is written, and it appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fxpar.checkpoint import companions, files
from fxpar.checkpoint.commit import put, settle, sync
from fxpar.checkpoint.conversion import Conversion, convert
from fxpar.checkpoint.copy import THREADS, Copy, Done
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.journal import Journal
from fxpar.checkpoint.stored import open_folder
from fxpar.checkpoint.tile import BYTES
from fxpar.checkpoint.workplace import Workplace, check_target, folder_of
from fxpar.errors import CheckpointError


@dataclass(frozen=True)
class Report:
    """What was done, or would be: tensors, files, bytes read and written.

    `resumed` is the number of tiles that an earlier run had written.
    """

    tensors: int
    files: int
    read: int
    written: int
    resumed: int = 0


@dataclass(frozen=True)
class Options:
    """How a copy is made, and who is told of it; see `reshard`."""

    resume: bool
    force: bool
    tile: int
    checksums: bool
    threads: int
    progress: Callable[[int, int], object]


def _quiet(done: int, total: int) -> None:
    pass


def reshard(
    source: Path,
    destination: Path,
    target: Callable[[Index], Index],
    *,
    hf: bool = False,
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    tile: int = BYTES,
    checksums: bool = True,
    threads: int = THREADS,
    progress: Callable[[int, int], object] = _quiet,
) -> Report:
    """Write the checkpoint `source` to the folder `destination`, in the layout that `target` gives for its index.

    With `hf` that is Hugging Face's: whole tensors, without fxpar's index and without state of an optimizer. With
    `resume` a copy that was interrupted goes on; with `force` a checkpoint that is there is replaced at the end.
    Each of the threads has two buffers of `tile` bytes, at least 8. `progress` is told how many bytes of tensors are
    done, and how many there are. Without `checksums` no crc32 is written or checked, and `resume` copies all again.

    Raises CheckpointError that lists all that is wrong, before anything is written where that can be known. After any
    error the destination is what it was before.
    """
    destination = Path(os.path.abspath(destination))
    if not destination.name:
        raise CheckpointError(f"{destination} is no place for a checkpoint", details=["name a folder in it"])
    if not (resume and folder_of(destination).is_dir()):
        check_target(destination, force)
    stored = open_folder(source)
    _check_apart(stored.root, destination)
    conversion = convert(stored, target, hf)
    if dry_run:
        conversion.check_room(folder_of(destination) / "new")
        return _report(conversion)
    options = Options(resume, force, tile, checksums, threads, progress)
    return _placed(conversion, destination, options)


def _check_apart(root: Path, destination: Path) -> None:
    """Raise CheckpointError if the source is the destination, or lies in it: it would be removed at the end."""
    if destination.resolve() in (root, *root.parents):
        raise CheckpointError(
            f"the source {root} lies in {destination}", details=["name another folder to write"]
        )


def _placed(conversion: Conversion, destination: Path, options: Options) -> Report:
    """Write beside the destination, then put what was written there."""
    workplace = Workplace(destination)
    keep = False
    try:
        plan = conversion.digest(options.tile)
        if options.resume and workplace.finished(plan) and _has_files(destination, conversion):
            return _report(conversion)
        check_target(destination, options.force)
        conversion.check_room(workplace.new)
        return _written(conversion, workplace, options)
    except OSError as error:
        conversion.check_unchanged()
        keep = True
        what = f"{error.filename or destination}: {error.strerror or error}"
        raise CheckpointError(what, details=["--resume goes on from here"]) from error
    except KeyboardInterrupt:
        keep = True
        raise
    finally:
        workplace.close(keep)


def _has_files(folder: Path, conversion: Conversion) -> bool:
    """Whether a folder has all files: the number of one that was removed may be given to another folder."""
    return all(
        (folder / file).is_file() and (folder / file).stat().st_size == size
        for file, size in conversion.sizes.items()
    )


def _written(conversion: Conversion, workplace: Workplace, options: Options) -> Report:
    journal = workplace.begin(conversion.digest(options.tile), options.resume)
    try:
        files.prune(workplace.new, conversion.sizes)
        for file, size in conversion.sizes.items():
            files.make(workplace.new / file, conversion.header(file), size)
        crc32 = _copied(conversion, workplace.new, journal, options)
        companions.copy(conversion.source.root, conversion.source.companions, workplace.new)
        conversion.check_unchanged()
        settle(workplace.new)
        for name, text in conversion.texts(crc32).items():
            (workplace.new / name).write_text(text, encoding="utf-8")
            sync(workplace.new / name)
        sync(workplace.new)
        put(workplace.new, workplace.destination, workplace.old, options.force)
        return _report(conversion, len(journal))
    finally:
        journal.close()


def _copied(
    conversion: Conversion, folder: Path, journal: Journal, options: Options
) -> dict[str, dict[str, int]]:
    """Copy all tensors; return the crc32 of each by file."""
    crc32: dict[str, dict[str, int]] = {}
    total, copied = conversion.bytes, 0

    def progress(size: int) -> None:
        nonlocal copied
        copied += size
        options.progress(copied, total)

    def done(task: Done) -> None:
        crc32[task.task.name] = task.targets

    transfer = conversion.transfer(folder)
    copy = Copy(
        transfer, tile=options.tile, checksums=options.checksums, log=journal, progress=progress, done=done
    )
    copy.run(options.threads)
    return crc32


def _report(conversion: Conversion, resumed: int = 0) -> Report:
    sizes = conversion.sizes
    return Report(len(conversion.index.tensors), len(sizes), conversion.read, sum(sizes.values()), resumed)
