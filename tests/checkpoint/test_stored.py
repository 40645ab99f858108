"""Checkpoints are read in both layouts, and all that is wrong with one is said at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import even, fused, index, tensor, values, whole, write

from fxpar.checkpoint.index import Indexed, Part
from fxpar.checkpoint.stored import open_folder
from fxpar.errors import CheckpointError

SPLIT = index(
    {
        "rows": tensor("F32", [even(6, 3), whole(2)]),
        "fused": tensor("BF16", [fused([3, 6], 3)]),
        "norm": tensor("F32", [whole(2)], 3),
    }
)
DATA = {name: values(each) for name, each in SPLIT.tensors.items()}


def foreign(**files: str) -> dict[str, Indexed]:
    """Whole tensors of two numbers in files."""
    return {
        name: Indexed("F32", (2,), ("2",), {}, {file: (Part((0,), (2,), (0,)),)})
        for name, file in files.items()
    }


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write(tmp_path / "ours", SPLIT, DATA)
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    tensors = foreign(a="model-1.safetensors", b="model-2.safetensors", c="model-2.safetensors")
    write(tmp_path / "theirs", index(tensors), {name: np.zeros(8, np.uint8) for name in tensors}, hf=True)
    return tmp_path / "theirs"


def told(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_folder(path)
    assert str(path) in str(caught.value).splitlines()[0]
    return list(caught.value.details)


def test_our_layout(ours: Path) -> None:
    (ours / "config.json").write_text("{}")
    found = open_folder(ours)
    assert found.index == SPLIT
    assert found.ours
    assert found.companions == ("config.json",)
    assert list(found.headers) == ["f0.safetensors", "f1.safetensors", "f2.safetensors"]
    assert [each.parts for each in found.side.held("fused")] == list(SPLIT.tensors["fused"].files.values())
    assert found.side.held("absent") == ()
    assert found.changed() == []
    os.utime(ours / "f1.safetensors", ns=(1, 2))
    assert found.changed() == ["f1.safetensors"]


def test_their_layout(theirs: Path) -> None:
    found = open_folder(theirs)
    assert not found.ours
    assert found.index.tensors == foreign(
        a="model-1.safetensors", b="model-2.safetensors", c="model-2.safetensors"
    )
    assert found.index.ranks == ("model-1.safetensors", "model-2.safetensors")


def test_one_file(tmp_path: Path) -> None:
    data = {"a": np.zeros(8, np.uint8)}
    write(tmp_path / "folder", index(foreign(a="model.safetensors")), data, hf=True)
    write(tmp_path / "other", index(foreign(a="other.safetensors")), data, hf=True)
    (tmp_path / "other" / "config.json").write_text("")
    assert list(open_folder(tmp_path / "folder").index.tensors) == ["a"]
    single = open_folder(tmp_path / "other" / "other.safetensors")
    assert (list(single.index.tensors), single.companions) == (["a"], ())


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert told(tmp_path) == ["it has no fxpar.index.json, model.safetensors.index.json or model.safetensors"]
    with pytest.raises(CheckpointError, match="absent is no folder and no file"):
        open_folder(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is no folder and no file"):
        open_folder(tmp_path / "pipe")


def cut_off(folder: Path) -> None:
    os.truncate(folder / "f1.safetensors", (folder / "f1.safetensors").stat().st_size - 1)


def forgotten(folder: Path) -> None:
    """The index has no tensors any more; its files have all of them."""
    data = json.loads((folder / "fxpar.index.json").read_text())
    (folder / "fxpar.index.json").write_text(json.dumps(data | {"tensors": {}}))


def swapped(folder: Path) -> None:
    (folder / "f0.safetensors").rename(folder / "x")
    (folder / "f1.safetensors").rename(folder / "f0.safetensors")
    (folder / "x").rename(folder / "f1.safetensors")


def linked_out(folder: Path) -> None:
    (folder / "f1.safetensors").rename(folder.parent / "f1.safetensors")
    (folder / "f1.safetensors").symlink_to("../f1.safetensors")


def edited(**changes: str) -> Callable[[Path], None]:
    """Replaces texts of the index."""

    def edit(folder: Path) -> None:
        text = (folder / "fxpar.index.json").read_text()
        for old, new in zip(changes["old"].split("|"), changes["new"].split("|")):
            assert old in text
            text = text.replace(old, new)
        (folder / "fxpar.index.json").write_text(text)

    return edit


@pytest.mark.parametrize(
    ("harm", "lines"),
    [
        (lambda folder: (folder / "f0.safetensors").unlink(), ["f0.safetensors is missing"]),
        (lambda folder: (folder / "f1.safetensors").unlink(), ["f1.safetensors is missing"]),
        (
            forgotten,
            [
                f"f{n}.safetensors: `{name}` is in the file, and not in the index"
                for n in range(3)
                for name in sorted(DATA)
            ],
        ),
        (cut_off, ["f1.safetensors: its tensors take 30 bytes, and only 29 are there: it was cut off"]),
        (linked_out, ["f1.safetensors is a link that leads out of the folder"]),
        (
            swapped,
            ["f0.safetensors was written as f1.safetensors", "f1.safetensors was written as f0.safetensors"],
        ),
        (
            edited(old='"norm"', new='"scale"'),
            [
                line
                for number in range(3)
                for line in (
                    f"f{number}.safetensors: `scale` is in the index, and not in the file",
                    f"f{number}.safetensors: `norm` is in the file, and not in the index",
                )
            ],
        ),
        (
            edited(old='"BF16"', new='"F16"'),
            [f"f{number}.safetensors: `fused` is BF16 [3], and F16 [3] in the index" for number in range(3)],
        ),
        (
            edited(old="[[2, 0], [2, 2], [0, 0]]|[[4, 0]", new="[[1, 0], [2, 2], [0, 0]]|[[3, 0]"),
            [
                "`rows` [6, 2]: [1, 2] at [1, 0] is in different boxes that overlap, in f0.safetensors, f1.safetensors",
                "`rows` [6, 2]: no file has the box [1, 2] at [5, 0]",
            ],
        ),
    ],
)
def test_harm_to_our_layout(ours: Path, harm: Callable[[Path], None], lines: list[str]) -> None:
    harm(ours)
    found = told(ours)
    assert [line for line in found if "was written as [" not in line] == lines


def test_names_that_lead_out(ours: Path) -> None:
    edited(old="f1.safetensors", new="../f1.safetensors")(ours)
    assert told(ours) == ["../f1.safetensors is not a plain file name"]


def test_boxes_that_were_exchanged(ours: Path) -> None:
    """Files of equal shapes whose boxes are exchanged in the index would be put together wrongly."""
    edited(
        old='"f0.safetensors": [[[0, 0]|"f1.safetensors": [[[2, 0]',
        new='"f0.safetensors": [[[2, 0]|"f1.safetensors": [[[0, 0]',
    )(ours)
    assert told(ours) == [
        "f0.safetensors: `rows` was written as [[[0, 0], [2, 2], [0, 0]]], "
        "and the index has [[[2, 0], [2, 2], [0, 0]]]",
        "f1.safetensors: `rows` was written as [[[2, 0], [2, 2], [0, 0]]], "
        "and the index has [[[0, 0], [2, 2], [0, 0]]]",
    ]


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        (
            {"a": "model-1.safetensors", "b": "model-2.safetensors"},
            ["model-2.safetensors: `c` is in the file, and not there by model.safetensors.index.json"],
        ),
        (
            {name: f"model-{1 + (name > 'a')}.safetensors" for name in "abcd"},
            ["model-2.safetensors: `d` is in model.safetensors.index.json, and not in the file"],
        ),
        (
            {name: f"model-{1 + (name > 'a') + (name > 'c')}.safetensors" for name in "abcd"},
            ["model-3.safetensors is missing"],
        ),
    ],
)
def test_harm_to_their_layout(theirs: Path, where: dict[str, str], lines: list[str]) -> None:
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert told(theirs) == lines


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_an_index_of_theirs_that_is_none(theirs: Path, text: str) -> None:
    (theirs / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="weight_map"):
        open_folder(theirs)


def test_parts_of_tensors_are_not_taken_for_whole_ones(ours: Path) -> None:
    (ours / "fxpar.index.json").unlink()
    (ours / "f1.safetensors").rename(ours / "model.safetensors")
    line = "model.safetensors is a part of a checkpoint of fxpar, and fxpar.index.json is not beside it"
    assert told(ours) == [line]
    with pytest.raises(CheckpointError, match="is a part of a checkpoint of fxpar"):
        open_folder(ours / "f2.safetensors")


def test_many_lines_are_cut(ours: Path) -> None:
    names = {f"t{number}": "model-1.safetensors" for number in range(70)}
    folder = ours.parent / "many"
    write(folder, index(foreign(**names)), {name: np.zeros(8, np.uint8) for name in names}, hf=True)
    text = json.dumps({"weight_map": {f"x{number}": "model-1.safetensors" for number in range(70)}})
    (folder / "model.safetensors.index.json").write_text(text)
    lines = told(folder)
    assert len(lines) == 51
    assert lines[-1] == "... and 90 more"
