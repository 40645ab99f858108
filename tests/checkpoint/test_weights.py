"""Weights in boxes, from memory and from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxpar.checkpoint.shardfile import Entry, write
from fxpar.checkpoint.weights import DTYPES, Box, FileWeights, TensorWeights, Weights, assemble, compare
from fxpar.errors import CheckpointError

TENSORS = {
    "a": torch.arange(48.0).reshape(6, 8),
    "b.c": torch.arange(4).to(torch.bfloat16),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False]),
}


@pytest.fixture(params=["memory", "file", "folder", "shards"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> Weights:
    if request.param == "memory":
        return TensorWeights(TENSORS)
    if request.param == "shards":
        return FileWeights.of(shards(tmp_path))
    save_file(TENSORS, tmp_path / "model.safetensors")
    return FileWeights.of(tmp_path / "model.safetensors" if request.param == "file" else tmp_path)


def shards(folder: Path) -> Path:
    one, two = {"a": TENSORS["a"]}, {name: tensor for name, tensor in TENSORS.items() if name != "a"}
    save_file(one, folder / "model-1.safetensors")
    save_file(two, folder / "model-2.safetensors")
    index(folder, {"a": "model-1.safetensors"} | dict.fromkeys(two, "model-2.safetensors"))
    return folder


def index(folder: Path, entries: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": entries}))


def test_names_shapes_values(weights: Weights) -> None:
    assert set(weights.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert weights.shape(name) == tuple(tensor.shape)
        assert weights.dtype(name) == tensor.dtype
        assert torch.equal(weights.read(name), tensor)
        assert weights.read(name).dtype == tensor.dtype


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_dtype_is_what_safetensors_calls_it(code: str, tmp_path: Path) -> None:
    dtype = DTYPES[code]
    tensor = (torch.arange(12 * dtype.itemsize) % 2).to(torch.uint8).view(dtype).view(3, 4)
    file = tmp_path / "model.safetensors"
    write(file, [Entry("a", dtype, (3, 4))], {"a": tensor}.__getitem__, {})
    assert torch.equal(load_file(file)["a"].view(torch.uint8), tensor.view(torch.uint8))
    found = FileWeights.of(file).read("a", [Box((1, 1), (2, 2))])
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor[1:, 1:3].contiguous().view(torch.uint8))


def test_boxes(weights: Weights) -> None:
    a = TENSORS["a"]
    assert torch.equal(weights.read("a", [Box((2, 4), (3, 2))]), a[2:5, 4:6])
    rows = [Box((0, 0), (1, 8)), Box((3, 0), (2, 8))]
    assert torch.equal(weights.read("a", rows), torch.cat([a[0:1], a[3:5]]))
    grid = [Box((row, column), (2, 1)) for row in (0, 4) for column in (1, 7)]
    assert torch.equal(weights.read("a", grid), a[[0, 1, 4, 5]][:, [1, 7]])
    assert torch.equal(weights.read("scalar", [Box((), ())]), TENSORS["scalar"])
    assert weights.read("a", [Box((2, 8), (3, 0))]).shape == (3, 0)


def test_what_is_read_is_new(weights: Weights) -> None:
    weights.read("a").zero_()
    assert weights.read("a").sum() == TENSORS["a"].sum() > 0


@pytest.mark.parametrize(
    ("name", "boxes", "message"),
    [
        ("nothing", None, "there are no weights for `nothing`"),
        ("a", [Box((5, 0), (2, 8))], r"`a` is \[6, 8\], and has no box \(\(5, 0\), \(2, 8\)\)"),
        ("a", [Box((0,), (2,))], "has no box"),
        ("a", [Box((-1, 0), (1, 1))], "has no box"),
        ("a", [], "no box of `a` is asked for"),
        ("a", [Box((0, 0), (1, 1)), Box((1, 1), (1, 1))], "the boxes are no grid"),
        ("a", [Box((0, 0), (1, 1)), Box((0, 0), (1, 1))], "the boxes are no grid"),
    ],
)
def test_refusals(weights: Weights, name: str, boxes: list[Box] | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        weights.read(name, boxes)


def test_meta_has_no_values() -> None:
    with pytest.raises(CheckpointError, match="`x` has no value"):
        TensorWeights({"x": torch.empty(2, device="meta")}).read("x")


def test_assemble_one() -> None:
    part = torch.ones(2)
    assert assemble([Box((3,), (2,))], [part]) is part


def test_compare_lists_everything() -> None:
    compare({name: tensor.shape for name, tensor in TENSORS.items()}, TensorWeights(TENSORS))
    wanted = {"a": (6, 9), "b.c": (4,), "more": (1,), "scalar": ()}
    with pytest.raises(CheckpointError) as caught:
        compare(wanted, TensorWeights(TENSORS), ignored=["flag"])
    assert str(caught.value).splitlines() == [
        "the weights do not fit the model",
        "  missing: `more`",
        "  unexpected: `empty`",
        "  size of `a`: [6, 8] in the file, [6, 9] in the model",
    ]


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no model\.safetensors"):
        FileWeights.of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        FileWeights.of(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no `weight_map` can be read"):
        FileWeights.of(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": "../model-1.safetensors"}, "leads out of the folder"),
        ({"a": "model-3.safetensors"}, "files are missing\n  model-3.safetensors"),
        ({"a": "model-1.safetensors", "b": "model-1.safetensors"}, "`b` is not in model-1.safetensors"),
        ({"b.c": "model-2.safetensors"}, "`empty` of model-2.safetensors is not in the index"),
    ],
)
def test_bad_index(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    shards(tmp_path)
    index(tmp_path, entries)
    with pytest.raises(CheckpointError, match=message):
        FileWeights.of(tmp_path)
