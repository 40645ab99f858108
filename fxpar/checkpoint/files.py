"""Files that get their bytes later: each has its header and all of its room from the beginning."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from fxpar.checkpoint.handles import put
from fxpar.errors import CheckpointError


def make(path: Path, header: bytes, size: int) -> None:
    """Make a file of `size` bytes that begins with a header; the rest of one that is there already stays.

    Raises CheckpointError for a full disk, and OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        os.truncate(descriptor, min(size, os.fstat(descriptor).st_size))
        os.posix_fallocate(descriptor, 0, size)
        put(descriptor, memoryview(header), 0)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(
                f"{path.name} of {size} bytes cannot be written: {error.strerror}"
            ) from error
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def prune(folder: Path, names: Iterable[str]) -> None:
    """Remove all files of a folder that have other names."""
    wanted = set(names)
    for entry in sorted(folder.iterdir()):
        if entry.name not in wanted:
            entry.unlink()
