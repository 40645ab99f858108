"""A source, a checkpoint that stands where another is to be written, and what must be left after an error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import even, fused, index, tensor, values, whole, write

from fxpar.checkpoint.checking import verify
from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.reshard import Report, reshard
from fxpar.errors import CheckpointError

#: Three shards: rows, columns, a fused dim, a replica in every file, and no dim at all.
SHARDS = index(
    {
        "rows": tensor("F32", [even(6, 3), whole(4)]),
        "columns": tensor("BF16", [whole(4), even(6, 3)]),
        "fused": tensor("F16", [fused([3, 6], 3)]),
        "norm": tensor("F32", [whole(4)], 3),
        "scale": tensor("F64", []),
    }
)
FILES = SHARDS.files
OTHER = index(
    {
        "rows": tensor("F32", [even(6, 2), whole(4)]),
        "columns": tensor("BF16", [whole(4), even(6, 2)]),
        "fused": tensor("F16", [fused([3, 6], 1)], 2),
        "norm": tensor("F32", [whole(4)], 2),
        "scale": tensor("F64", [], 2),
    }
)
DATA = {name: values(each, number) for number, (name, each) in enumerate(SHARDS.tensors.items())}
#: Three files of Hugging Face's layout.
PARTS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
PLACED = {"rows": PARTS[0], "columns": PARTS[1], "fused": PARTS[1], "norm": PARTS[2], "scale": PARTS[2]}
WEIGHT_MAP = "model.safetensors.index.json"
OURS = "fxpar.index.json"
TILE = 16


def hugging(where: dict[str, str]) -> Index:
    """The index of whole tensors in files."""
    made = {}
    for name, file in where.items():
        each = SHARDS.tensors[name]
        zeros = (0,) * len(each.shape)
        made[name] = Indexed(each.dtype, each.shape, each.dims, {}, {file: (Part(zeros, each.shape, zeros),)})
    return index(made)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All below a folder: the time of change and the (first) bytes of files, what links lead to."""
    found = {}
    for path in sorted(folder.rglob("*")):
        data = str(path.lstat().st_size).encode()
        if path.is_symlink():
            data = os.fsencode(path.readlink())
        elif path.is_file():
            with path.open("rb") as file:
                data += b" " + file.read(1 << 20)
        time = path.lstat().st_mtime_ns
        found[str(path.relative_to(folder))] = (0, b"") if path.is_dir() else (time, data)
    return found


class Place:
    """A folder with a source, a checkpoint of other tensors that may be in the way, and nothing else."""

    def __init__(self, root: Path, hf: bool) -> None:
        self.root, self.source, self.made = root, root / "source", root / "made"
        write(self.source, hugging(PLACED) if hf else SHARDS, DATA, crc32=not hf, hf=hf)
        (self.source / "config.json").write_text("{}")

    def stand(self) -> None:
        """Put a checkpoint where the next one is written."""
        old = index({"old": tensor("F32", [whole(3)])})
        write(self.made, old, {"old": np.arange(12, dtype=np.uint8)}, crc32=True)

    def edit(self, change: Callable[[dict[str, object]], object], name: str = OURS) -> None:
        """Change the data of an index."""
        data = json.loads((self.source / name).read_text())
        change(data)
        (self.source / name).write_text(json.dumps(data))

    def patch(self, file: str, at: int, new: bytes) -> None:
        """Write over bytes of a file, counted from the end if `at` is negative."""
        data = bytearray((self.source / file).read_bytes())
        at %= len(data)
        data[at : at + len(new)] = new
        (self.source / file).write_bytes(data)

    def reshard(self, **options: object) -> Report:
        """Give the source the other layout."""
        return reshard(self.source, self.made, lambda _: OTHER, **{"tile": TILE, **options})

    def refuses(self, *lines: str, looks: bool = True) -> None:
        """It is an error that has all these texts, at first and with a checkpoint in the way; nothing is changed.

        `looks`: headers and index tell it already, so that a dry run and a check say the same.
        """
        before = snapshot(self.root)
        said = self._error(lambda: self.reshard(), lines)
        if looks:
            assert said == self._error(lambda: self.reshard(dry_run=True), lines)
            assert said == self._error(lambda: verify(self.source), lines)
        assert snapshot(self.root) == before
        self.stand()
        before = snapshot(self.root)
        self._error(lambda: self.reshard(force=True), lines)
        assert snapshot(self.root) == before

    @staticmethod
    def _error(run: Callable[[], object], lines: tuple[str, ...]) -> str:
        with pytest.raises(CheckpointError) as caught:
            run()
        for line in lines:
            assert line in str(caught.value)
        return str(caught.value)
