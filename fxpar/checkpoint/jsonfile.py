"""JSON files of a checkpoint, which anyone may have written: of a bounded length, and no key stands twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxpar.errors import CheckpointError

#: A file has fewer bytes than this; 10,000 tensors of 100 ranks take a tenth of it.
LONGEST = 1 << 29


def text(path: Path) -> str:
    """The text of a file. Raises CheckpointError, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(_bounded(path, path.stat().st_size) + 1)
        _bounded(path, len(data))
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {reason}") from error


def _bounded(path: Path, size: int) -> int:
    if size >= LONGEST:
        raise CheckpointError(f"{path} has {size} bytes, and less than {LONGEST} are read")
    return size


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping in which no key stands twice, for `object_pairs_hook`. Raises ValueError."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key `{key}` stands twice")
        found[key] = value
    return found
