"""Names of files that come from a checkpoint, and must not lead out of its folder."""

from __future__ import annotations

from pathlib import Path


def fault(root: Path, name: str) -> str:
    """Why `name` is no file of the folder `root`, or an empty text. Nothing is opened."""
    if not plain(name):
        return "is not a plain file name"
    try:
        return _fault(root, root / name)
    except OSError as error:  # A name may be longer than a system takes.
        return f"cannot be looked at: {error.strerror}"


def plain(name: str) -> bool:
    """Whether a name can only be that of a file in a folder."""
    return isinstance(name, str) and name not in {"", ".", ".."} and not set(name) & set("/\\\0")


def _fault(root: Path, path: Path) -> str:
    if not path.exists():
        return "is a link to nothing" if path.is_symlink() else "is missing"
    if path.resolve().parent not in _homes(root):
        return "is a link that leads out of the folder"
    return "" if path.is_file() else "is no file"


def _homes(root: Path) -> list[Path]:
    """Where files of a folder may lie: in it, and for Hugging Face's cache where that keeps what it links to.

    models--x/blobs/0123...   models--x/snapshots/4567.../model.safetensors -> ../../blobs/0123...
    """
    root = root.resolve()
    return [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
