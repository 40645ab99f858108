"""The index of a checkpoint as text, and what becomes of texts that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fxpar.checkpoint.index import Index, Indexed, Part, metadata
from fxpar.errors import CheckpointError

A, B = "model-pp0-tp0.safetensors", "model-pp0-tp1.safetensors"
C = "optimizer-pp0.safetensors"
FUSED = (Part((0, 0), (2, 3), (0, 0)), Part((4, 0), (2, 3), (2, 0)))
OTHER = (Part((2, 0), (2, 3), (0, 0)), Part((6, 0), (2, 3), (2, 0)))
WHOLE = (Part((), (), ()),)
INDEX = Index(
    "model.py",
    "0123",
    {"pp": 1, "tp": 2},
    (A, B),
    {
        "fused": Indexed(
            "F32", (8, 3), ("cat[ffn, ffn]", "3"), {"tp": "Shard(0, ffn)"}, {A: FUSED, B: OTHER}
        ),
        "scale": Indexed("BF16", (), (), {"tp": "Replicate"}, {A: WHOLE, B: WHOLE}),
        "late": Indexed("I64", (4,), ("4",), {"tp": "Replicate"}, {B: (Part((0,), (4,), (0,)),)}),
        "mean/late": Indexed("F32", (4,), ("4",), {}, {C: (Part((0,), (4,), (0,)),)}, (1, 2), "late", {C: 7}),
    },
    {"tied": "fused"},
    {"ffn": ("tp",), "vocab": ("tp~",)},
    {"heads": "groups"},
)


def test_an_index_comes_back(tmp_path: Path) -> None:
    (tmp_path / "fxpar.index.json").write_text(INDEX.to_json())
    assert Index.read(tmp_path) == INDEX
    assert Index.read(tmp_path / "fxpar.index.json") == INDEX


def test_each_tensor_has_a_line() -> None:
    lines = INDEX.to_json().splitlines()
    assert [line.split(":")[0].strip() for line in lines if line.startswith("  ")] == [
        '"fused"',
        '"scale"',
        '"late"',
        '"mean/late"',
    ]


def test_what_a_file_holds() -> None:
    assert INDEX.files == (A, B, C)
    assert INDEX.names(A) == ["fused", "scale"]
    assert INDEX.names(B) == ["fused", "scale", "late"]
    assert INDEX.tensors["fused"].local_shape(A) == (4, 3)
    assert INDEX.tensors["scale"].local_shape(A) == ()


def test_metadata_is_the_part_of_one_file() -> None:
    mine = metadata(INDEX, A)
    assert all(isinstance(value, str) for value in mine.values())
    offsets = json.loads(mine["DCP_SHARDING_INFO"])
    assert offsets == {"fused": {"saved_offsets": [8, 3]}, "scale": {"saved_offsets": []}}
    own = json.loads(mine["fxpar"])
    assert own["tensors"]["fused"]["files"] == {A: [[[0, 0], [2, 3], [0, 0]], [[4, 0], [2, 3], [2, 0]]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "fxpar.index.json is damaged"),
        ("[]", "fxpar.index.json is damaged"),
        ("{}", "fxpar.index.json is damaged\n  it lacks 'format'"),
        ('{"format": 3}', "fxpar.index.json has format 3, this fxpar reads 2"),
        ('{"format": 2, "format": 2}', "fxpar.index.json is damaged\n  the key `format` stands twice"),
        ("[" * 100_000, "fxpar.index.json is damaged"),
        (
            INDEX.to_json().replace("[8, 3]", "[-8, 3]"),
            "fxpar.index.json is damaged\n  `fused`: -8 is no size",
        ),
        (
            INDEX.to_json().replace("[8, 3]", "[8.0, 3]"),
            "fxpar.index.json is damaged\n  `fused`: 8.0 is no size",
        ),
        (
            INDEX.to_json().replace("[[6, 0]", "[[7, 0]"),
            "fxpar.index.json is damaged\n  `fused`: a tensor of shape [8, 3] has no box [[7, 0], [2, 3], [2, 0]]",
        ),
        (
            INDEX.to_json().replace('["4"]', '["4", "1"]'),
            "fxpar.index.json is damaged\n  `late`: a tensor of shape [4] has the dims ['4', '1']",
        ),
        (
            INDEX.to_json().replace('["4"]', '"4"'),
            "fxpar.index.json is damaged\n  `late`: '4' is no list of texts",
        ),
        (
            INDEX.to_json().replace('"rows": {', '"rows": {"depth": "tp", '),
            "fxpar.index.json is damaged\n  'tp' is no list of texts",
        ),
        (
            INDEX.to_json().replace("[[0, 0], [2, 3], [0, 0]]", "[[0, 0], [2, 3]]"),
            "fxpar.index.json is damaged",
        ),
    ],
    ids=[
        "torn",
        "a list",
        "empty",
        "newer",
        "twice",
        "deep",
        "negative",
        "no int",
        "outside",
        "dims",
        "dims as text",
        "row as text",
        "box",
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Index.from_json(text)
    assert str(caught.value).startswith(message)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fxpar\.index\.json cannot be read"):
        Index.read(tmp_path)


def test_torch_is_not_needed() -> None:
    check = "import sys, fxpar.checkpoint.index; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
