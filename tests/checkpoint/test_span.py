"""Boxes read from a file: every way to cut a tensor."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpar.checkpoint import span

HEAD = 24


@st.composite
def boxes(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    sizes = [draw(st.integers(0, size)) for size in shape]
    return shape, [draw(st.integers(0, whole - size)) for whole, size in zip(shape, sizes)], sizes


@given(boxes(), st.sampled_from([torch.float32, torch.bfloat16, torch.bool]), st.sampled_from([1, 40]))
def test_a_box_is_the_slice(
    tmp_path_factory: pytest.TempPathFactory,
    box: tuple[list[int], list[int], list[int]],
    dtype: torch.dtype,
    limit: int,
) -> None:
    shape, offsets, sizes = box
    whole = torch.arange(prod(shape)).reshape(shape).to(dtype)
    path = tmp_path_factory.getbasetemp() / "tensor"
    path.write_bytes(b"h" * HEAD + whole.reshape(-1).view(torch.uint8).numpy().tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(span, "BAND", limit)
        patch.setattr(span, "RUN", limit)
        found = read(path, shape, dtype, offsets, sizes)
    wanted = whole[tuple(slice(start, start + size) for start, size in zip(offsets, sizes))]
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


def read(
    path: Path, shape: list[int], dtype: torch.dtype, offsets: list[int], sizes: list[int]
) -> torch.Tensor:
    file = os.open(path, os.O_RDONLY)
    try:
        return span.read(file, HEAD, shape, dtype, offsets, sizes)
    finally:
        os.close(file)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    (tmp_path / "tensor").write_bytes(b"h" * (HEAD + 4))
    with pytest.raises(EOFError, match="the file ends before its tensors do"):
        read(tmp_path / "tensor", [2], torch.float32, [0], [2])
