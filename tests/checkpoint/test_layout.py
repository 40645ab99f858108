"""Files are laid out as those that are written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxpar.checkpoint import header, layout, shardfile
from fxpar.checkpoint.layout import Slot, lay, ordered
from fxpar.errors import CheckpointError

SLOTS = [Slot("b", "F32", (2,)), Slot("a", "F16", (3, 1)), Slot("c", "I64", ()), Slot("d", "F32", (0, 4))]


def test_the_order_of_tensors() -> None:
    assert [slot.name for slot in ordered(SLOTS)] == ["c", "b", "d", "a"]


def test_starts_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "b": torch.ones(2),
        "a": torch.ones(3, 1, dtype=torch.float16),
        "c": torch.tensor(3),
        "d": torch.ones(0, 4),
    }
    entries = [shardfile.Entry(name, each.dtype, tuple(each.shape)) for name, each in tensors.items()]
    shardfile.write(tmp_path / "file", entries, tensors.__getitem__, {"format": "pt"})
    laid, found = lay(SLOTS, {"format": "pt"}), header.read(tmp_path / "file")
    assert (tmp_path / "file").read_bytes().startswith(laid.header)
    assert laid.size == found.size
    assert laid.starts == {name: found.start(name) for name in tensors}
    assert found.body % layout.ALIGNMENT == 0


def test_a_header_that_no_reader_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LONGEST", 4000)
    with pytest.raises(
        CheckpointError, match="a header of 4088 bytes would be needed, and less than 4000 are read"
    ):
        lay(SLOTS, {})
