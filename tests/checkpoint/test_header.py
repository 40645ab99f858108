"""Headers that are right, and what is said of each that is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fxpar.checkpoint import header
from fxpar.checkpoint.header import LONGEST, Span, parse
from fxpar.errors import CheckpointError


def written(path: Path, fields: Any, body: int = 0) -> Path:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))
    return path


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


def test_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bool), "ä": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "file", {"format": "pt"})
    found = header.read(tmp_path / "file")
    assert found.metadata == {"format": "pt"}
    assert {name: (span.dtype, span.shape) for name, span in found.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BOOL", ()),
        "ä": ("F32", (0, 4)),
    }
    assert found.size == found.body + 25 == (tmp_path / "file").stat().st_size
    assert found.start("a") == found.body + found.tensors["a"].start
    assert found.unchanged()
    os.utime(tmp_path / "file", ns=(0, 0))
    assert not found.unchanged()
    (tmp_path / "file").unlink()
    assert not found.unchanged()


def test_nothing_is_a_file_too() -> None:
    assert parse(b"{}  ", 0) == ({}, {})
    assert parse(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 1)[1] == {
        "a": Span("F4", (2,), 0, 1)
    }


@pytest.mark.parametrize(
    ("fields", "body", "message"),
    [
        ({"a": entry(0, 4)}, 3, "its tensors take 4 bytes, and only 3 are there: it was cut off"),
        ({"a": entry(0, 4)}, 5, "its tensors take 4 bytes, and 5 are there: something was added"),
        ({"a": entry(0, 4), "b": entry(5, 6)}, 6, "no tensor has the bytes 4 to 5 of the body, before `b`"),
        (
            {"a": entry(0, 4), "b": entry(3, 6)},
            6,
            "`a` and `b` overlap: one ends at 4, the other starts at 3",
        ),
        ({"a": entry(0, 4, [5])}, 4, "`a` is U8 [5], which takes 5 bytes, and has 4"),
        (
            {"a": entry(0, 4, [2**62, 2**62])},
            4,
            "`a` is U8 [4611686018427387904, 4611686018427387904], which takes",
        ),
        ({"a": entry(0, 4, [-4])}, 4, "`a` has the shape [-4]: at most 32 whole numbers from 0 on are one"),
        ({"a": entry(0, 4, [4, *[1] * 32])}, 4, "`a` has the shape [4, 1,"),
        ({"a": entry(0, 1, [True])}, 1, "`a` has the shape [True]"),
        ({"a": {**entry(0, 4), "shape": 4}}, 4, "`a` has the shape 4"),
        ({"a": {**entry(0, 4), "shape": [4.0]}}, 4, "its header has the number 4.0, and only whole numbers"),
        (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}', 4, "its header has the number NaN"),
        (
            {"a": {**entry(0, 4), "data_offsets": [4, 0]}},
            4,
            "`a` has the data_offsets [4, 0], not a start and an end",
        ),
        (
            {"a": {**entry(0, 4), "data_offsets": [0]}},
            4,
            "`a` has the data_offsets [0], not a start and an end",
        ),
        (
            {"a": {**entry(0, 4), "more": 1}},
            4,
            "`a` does not have exactly `dtype`, `shape` and `data_offsets`",
        ),
        ({"a": 3}, 0, "`a` does not have exactly `dtype`, `shape` and `data_offsets`"),
        ({"a": entry(0, 4, dtype="F7")}, 4, "`a` has the dtype 'F7', which safetensors does not know"),
        (
            {"a": {**entry(0, 4), "dtype": ["U8"]}},
            4,
            "`a` has the dtype ['U8'], which safetensors does not know",
        ),
        ({"a": entry(0, 2, [3], "F4")}, 2, "`a`: F4 [3] ends within a byte"),
        (b'{"a":{},"a":{}}', 0, "the key `a` stands twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8"}}', 0, "the key `dtype` stands twice"),
        (b'{"__metadata__":{"a":1}}', 0, "`__metadata__` is not a mapping of strings to strings"),
        (b'{"__metadata__":"a"}', 0, "`__metadata__` is not a mapping of strings to strings"),
        (b"[]", 0, "its header does not begin with `{`"),
        (b"", 0, "its header does not begin with `{`"),
        (b"{", 0, "its header is not JSON: "),
        (b'{"\xff":{}}', 0, "its header is not JSON: "),
        (b'{"\\ud800":{}}', 0, "the name '\\ud800' is not Unicode"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, "its header is nested too deeply"),
        (
            b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
            4,
            "`a` has the shape [9223372036854775808]: at most 32 whole numbers",
        ),
    ],
)
def test_headers_that_are_wrong(tmp_path: Path, fields: Any, body: int, message: str) -> None:
    path = written(tmp_path / "file", fields, body)
    with pytest.raises(CheckpointError) as caught:
        header.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ": a safetensors file begins with 8 bytes, this one has 0"),
        (b"1234567", ": a safetensors file begins with 8 bytes, this one has 7"),
        (
            LONGEST.to_bytes(8, "little"),
            f": its header would have {LONGEST} bytes, and less than {LONGEST} are read",
        ),
        (b"\xff" * 8, ": its header would have 18446744073709551615 bytes, and less"),
        (b"\x05" + bytes(7) + b"{}", ": its header would have 5 bytes, and only 2 follow: it was cut off"),
    ],
)
def test_files_that_are_cut_off(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        header.read(tmp_path / "file")
    assert str(caught.value).startswith(f"{tmp_path / 'file'}{message}")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        ".": "is no file",
        "pipe": "is no file",
        "absent": "cannot be read: No such file",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            header.read(tmp_path / name)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 9))
def test_any_bytes_are_a_header_or_an_error(data: bytes, body: int) -> None:
    for text in (data, b"{" + data, b'{"a":' + data + b"}"):
        try:
            _, tensors = parse(text, body)
        except ValueError:
            continue
        assert sum(span.stop - span.start for span in tensors.values()) == body
