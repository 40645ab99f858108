"""Making a folder that was written the one that counts: on disk first, then under its name, at once."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_NOREPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100


def settle(folder: Path) -> None:
    """Wait until the files of a folder and their names are on disk."""
    for entry in sorted(folder.iterdir()):
        sync(entry)
    sync(folder)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def put(new: Path, destination: Path, old: Path, force: bool) -> None:
    """Give the folder `new` the name `destination`; with `force` what was there is `new` or `old` then.

    On file systems that can swap names, there is a whole folder of that name at every moment. On others there is none
    between two renames, and what was there is `old`. Raises FileExistsError without `force`, and OSError.
    """
    if not (force and os.path.lexists(destination)):
        if not _rename(new, destination, _NOREPLACE):
            if os.path.lexists(destination):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(destination))
            new.rename(destination)
    elif not _rename(new, destination, _EXCHANGE):
        destination.rename(old)
        try:
            new.rename(destination)
        except BaseException:
            old.rename(destination)
            raise
    sync(destination.parent)


def _rename(source: Path, target: Path, flags: int) -> bool:
    """Linux's renameat2; whether system and file system have it. Raises OSError for any other failure."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))
