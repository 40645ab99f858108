"""Boxes of whole tensors from folders in the one layout: any boxes, any mesh, and only the bytes that are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpar.checkpoint import span
from fxpar.checkpoint.box import Box
from fxpar.checkpoint.index import Index, Part
from fxpar.checkpoint.sharded import CheckpointWeights, meet, open_weights
from fxpar.checkpoint.weights import FileWeights
from fxpar.errors import CheckpointError

SHAPES = {"rows": (8, 6), "fused": (12, 3), "both": (8, 6), "copies": (4,), "number": (), "empty": (0, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files with tensors that are cut along one dim, two, in parts that interleave, or not at all."""
    place = tmp_path_factory.mktemp("sharded") / "checkpoint"
    index = layouts.index(
        {
            "rows": layouts.tensor("F32", [layouts.even(8, 4), layouts.whole(6)]),
            "fused": layouts.tensor("I64", [layouts.fused([8, 4], 4), layouts.whole(3)]),
            "both": layouts.tensor("BF16", [layouts.even(8, 2), layouts.even(6, 2)]),
            "copies": layouts.tensor("U8", [layouts.whole(4)], copies=4),
            "number": layouts.tensor("F64", [], copies=4),
            "empty": layouts.tensor("F32", [layouts.whole(0), layouts.whole(3)]),
        }
    )
    layouts.write(place, index, {name: layouts.values(each) for name, each in index.tensors.items()})
    return place


def wanted(folder: Path, name: str) -> torch.Tensor:
    """The whole tensor, from the bytes that were written."""
    weights = CheckpointWeights(folder)
    data = layouts.values(Index.read(folder).tensors[name])
    whole = torch.empty(SHAPES[name], dtype=weights.dtype(name))
    whole.view(-1).view(torch.uint8)[:] = torch.from_numpy(np.array(data))
    return whole


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether dtype, shape and bytes are the same; some numbers are no numbers."""
    parts = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*parts)


@pytest.mark.parametrize("name", SHAPES)
def test_whole_tensors(folder: Path, name: str) -> None:
    weights = CheckpointWeights(folder)
    assert (weights.names(), weights.shape(name)) == (list(SHAPES), SHAPES[name])
    assert same(weights.read(name), wanted(folder, name))


@given(data=st.data(), name=st.sampled_from(["rows", "fused", "both", "copies"]))
def test_any_box(folder: Path, data: st.DataObject, name: str) -> None:
    starts = [data.draw(st.integers(0, size)) for size in SHAPES[name]]
    sizes = [data.draw(st.integers(0, size - start)) for size, start in zip(SHAPES[name], starts)]
    box = Box(tuple(starts), tuple(sizes))
    assert same(CheckpointWeights(folder).read(name, [box]), wanted(folder, name)[box.slices].contiguous())


def test_only_what_is_asked_for_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a replica one file, of rows those of the box; and no header of another file."""
    asked: list[tuple[int, ...]] = []
    real = span.read

    def read(*arguments: object) -> torch.Tensor:
        asked.append(arguments[5])  # type: ignore[arg-type]
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(span, "read", read)
    weights = CheckpointWeights(folder)
    weights.read("copies")
    weights.read("rows", [Box((1, 2), (2, 3))])
    assert asked == [(4,), (1, 3), (1, 3)]
    assert sorted(weights._headers) == ["f0.safetensors", "f1.safetensors"]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (((0, 0), (4, 4)), ((2, 1), (4, 2)), ((2, 1), (2, 2))),
        (((0, 0), (4, 4)), ((4, 0), (1, 1)), None),
        (((0, 0), (0, 4)), ((0, 0), (4, 4)), None),
        (((), ()), ((), ()), ((), ())),
    ],
)
def test_what_boxes_have_in_common(one, other, both) -> None:  # type: ignore[no-untyped-def]
    assert meet(Part(*one, one[0]), Box(*other)) == both


def test_either_layout_is_opened(folder: Path, tmp_path: Path) -> None:
    assert isinstance(open_weights(folder), CheckpointWeights)
    index = layouts.index({"a": layouts.tensor("F32", [layouts.whole(3)])})
    layouts.write(tmp_path / "hf", index, {"a": layouts.values(index.tensors["a"])}, hf=True)
    (tmp_path / "hf" / "f0.safetensors").rename(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    assert isinstance(open_weights(tmp_path / "hf"), FileWeights)
    with pytest.raises(CheckpointError, match=r"there is no .*nowhere"):
        open_weights(tmp_path / "nowhere")


def test_unknown_names_and_boxes(folder: Path) -> None:
    weights = CheckpointWeights(folder)
    with pytest.raises(CheckpointError, match="there are no weights for `no`"):
        weights.read("no")
    with pytest.raises(CheckpointError, match=r"`rows` is \[8, 6\], and has no box"):
        weights.read("rows", [Box((7, 0), (2, 6))])


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no checkpoint: it has no fxpar\.index\.json"):
        CheckpointWeights(tmp_path)


def test_a_folder_of_checkpoints(folder: Path) -> None:
    """Whoever names the folder of a run is told the last one that it saved."""
    with pytest.raises(CheckpointError, match=f"is no checkpoint: .*\n  did you mean {folder}\\?"):
        open_weights(folder.parent)


def test_a_file_that_leads_out(folder: Path, tmp_path: Path) -> None:
    text = (folder / "fxpar.index.json").read_text().replace("f0.safetensors", "../f0.safetensors")
    (tmp_path / "fxpar.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"f0\.safetensors is not a plain file name"):
        CheckpointWeights(tmp_path).read("copies")


def test_boxes_that_overlap_are_refused(folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "fxpar.index.json").read_text())
    data["tensors"]["rows"]["files"]["f1.safetensors"][0][0] = [1, 0]
    (tmp_path / "fxpar.index.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        CheckpointWeights(tmp_path)
    assert "`rows` [8, 6]: [1, 6] at [1, 0] is in different boxes that overlap" in str(caught.value)
    assert "`rows` [8, 6]: no file has the box [1, 6] at [3, 0]" in str(caught.value)
