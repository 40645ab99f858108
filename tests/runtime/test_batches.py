"""Batches from files, and the example of the capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fxpar import origin
from fxpar.emit.folder import write
from fxpar.errors import RankError
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.batches import batches


@pytest.fixture
def found() -> origin.Origin:
    return origin.of_module(torch.nn.Linear(3, 2), {"input": torch.ones(4, 3)})


def test_the_example_is_the_default(found: origin.Origin, tmp_path: Path) -> None:
    manifest = write(split(found.program, Plan()), tmp_path / "out", None, example=found.example)
    assert torch.equal(batches(tmp_path / "out", manifest)[0]["input"], torch.ones(4, 3))


def test_files_are_taken_in_order(found: origin.Origin, tmp_path: Path) -> None:
    manifest = write(split(found.program, Plan()), tmp_path / "out", None, example=found.example)
    np.savez(tmp_path / "a.npz", input=np.zeros((4, 3), dtype=np.float32))
    save_file({"input": torch.full((4, 3), 7.0)}, tmp_path / "b.safetensors")
    a, b = batches(tmp_path / "out", manifest, [tmp_path / "a.npz", tmp_path / "b.safetensors"])
    assert float(a["input"].sum()) == 0
    assert float(b["input"].max()) == 7


def test_without_an_example_a_batch_is_asked_for(found: origin.Origin, tmp_path: Path) -> None:
    manifest = write(split(found.program, Plan()), tmp_path / "out", None)
    with pytest.raises(RankError) as caught:
        batches(tmp_path / "out", manifest)
    assert str(caught.value).splitlines() == [
        "there is no example batch in the folder: give --batch FILE with these tensors",
        "  input: float32[4, 3]",
    ]


@pytest.mark.parametrize("name", ["absent.npz", "absent.safetensors", "text.npz", "text.safetensors"])
def test_files_that_cannot_be_read(found: origin.Origin, tmp_path: Path, name: str) -> None:
    manifest = write(split(found.program, Plan()), tmp_path / "out", None)
    if "text" in name:
        (tmp_path / name).write_text("neither")
    with pytest.raises(RankError, match=f"{name} cannot be read"):
        batches(tmp_path / "out", manifest, [tmp_path / name])
