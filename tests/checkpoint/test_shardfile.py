"""Files that are written tensor by tensor are what safetensors reads."""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fxpar.checkpoint.shardfile import CODES, Entry, write
from fxpar.errors import CheckpointError

TENSORS = {
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "bool": torch.tensor([True, False, True]),
    "transposed": torch.arange(12, dtype=torch.float64).reshape(3, 4).t(),
    "bfloat16": torch.randn(5).bfloat16(),
    "float8": torch.randn(3).to(torch.float8_e4m3fn),
    "ä": torch.arange(3),
}


def entries() -> list[Entry]:
    return [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    digest, crc32 = write(path, entries(), TENSORS.__getitem__, {"format": "pt"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].double(), tensor.double())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert crc32 == {
        n: zlib.crc32(t.contiguous().reshape(-1).view(torch.uint8).numpy()) for n, t in TENSORS.items()
    }


def test_the_order_of_the_entries_does_not_matter(tmp_path: Path) -> None:
    for name, order in {"a": entries(), "b": entries()[::-1]}.items():
        write(tmp_path / name, order, TENSORS.__getitem__, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_may_hold_nothing(tmp_path: Path) -> None:
    write(tmp_path / "file.safetensors", [], TENSORS.__getitem__, {})
    assert load_file(tmp_path / "file.safetensors") == {}


def test_one_tensor_is_read_after_the_other(tmp_path: Path) -> None:
    order = []
    write(tmp_path / "file", entries(), lambda name: order.append(name) or TENSORS[name], {})
    assert order == ["transposed", "ä", "empty", "scalar", "bfloat16", "bool", "float8"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("scalar", torch.float32, (1,)), "`scalar` is torch.float32 [], not torch.float32 [1]"),
        (Entry("scalar", torch.float64, ()), "`scalar` is torch.float32 [], not torch.float64 []"),
        (
            Entry("scalar", torch.complex128, ()),
            "`scalar` has dtype torch.complex128, which safetensors cannot hold",
        ),
    ],
    ids=["shape", "dtype", "unknown"],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, entry: Entry, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        write(tmp_path / "file", [entry], TENSORS.__getitem__, {})


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="file cannot be written: File exists"):
        write(tmp_path / "file", entries(), TENSORS.__getitem__, {})


def test_codes_are_one_to_one() -> None:
    assert len(set(CODES.values())) == len(CODES)
