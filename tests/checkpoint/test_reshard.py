"""From one layout to another: the bytes are those of a checkpoint that was written so, whatever the layouts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import even, fused, index, tensor, values, whole, write

from fxpar.checkpoint.conversion import convert
from fxpar.checkpoint.index import Index, Indexed, metadata
from fxpar.checkpoint.layout import Slot, header
from fxpar.checkpoint.reshard import reshard
from fxpar.checkpoint.stored import open_folder
from fxpar.errors import CheckpointError


def same(first: Path, second: Path) -> None:
    """Both folders hold the same bytes."""
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def bytes_of(layout: Index) -> dict[str, np.ndarray]:
    return {name: values(each, number) for number, (name, each) in enumerate(layout.tensors.items())}


SPLIT = index(
    {
        "rows": tensor("F32", [even(64, 4), whole(33)]),
        "columns": tensor("BF16", [whole(33), even(64, 4)]),
        "fused": tensor("BF16", [whole(33), fused([32, 16, 16], 4)]),
        "fused rows": tensor("F16", [fused([32, 16, 16], 4), whole(10)]),
        "experts": tensor("F8_E4M3", [even(8, 2), whole(3), even(6, 2)]),
        "replicas": tensor("U8", [whole(7)], 4),
        "scalar": tensor("F64", [], 2),
        "empty": tensor("I64", [whole(0), whole(3)]),
        "flags": tensor("BOOL", [even(5, 2)]),
    }
)
MERGED = index(
    {
        "rows": tensor("F32", [even(64, 3), whole(33)]),
        "columns": tensor("BF16", [whole(33), whole(64)]),
        "fused": tensor("BF16", [even(33, 2), fused([32, 16, 16], 2)]),
        "fused rows": tensor("F16", [fused([32, 16, 16], 2), whole(10)], 2),
        "experts": tensor("F8_E4M3", [even(8, 2), even(3, 3), whole(6)]),
        "replicas": tensor("U8", [even(7, 2)], 2),
        "scalar": tensor("F64", [], 3),
        "empty": tensor("I64", [whole(0), whole(3)]),
        "flags": tensor("BOOL", [whole(5)], 2),
    }
)
WHOLE = index(
    {
        name: tensor(t.dtype, [whole(size) for size in t.shape], prefix="model")
        for name, t in SPLIT.tensors.items()
    }
)


@pytest.mark.parametrize("tile", [16, 100, 1 << 20])
@pytest.mark.parametrize(
    ("source", "target"), [(SPLIT, MERGED), (MERGED, SPLIT), (WHOLE, SPLIT), (SPLIT, WHOLE)]
)
def test_every_byte_is_that_of_a_checkpoint_written_so(
    tmp_path: Path, source: Index, target: Index, tile: int
) -> None:
    data = bytes_of(SPLIT)
    write(tmp_path / "source", source, data, crc32=True)
    write(tmp_path / "wanted", target, data, crc32=True)
    report = reshard(tmp_path / "source", tmp_path / "made", lambda _: target, tile=tile)
    same(tmp_path / "wanted", tmp_path / "made")
    assert (report.tensors, report.files) == (9, len(target.files))
    assert report.written == sum(path.stat().st_size for path in (tmp_path / "made").glob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"source", "wanted", "made"}


DTYPES = st.sampled_from(["F64", "F32", "BF16", "F8_E5M2", "BOOL"])


def cut(data: st.DataObject, size: int) -> list[list[tuple[int, int]]]:
    """Ranges of a dim for each file."""
    if size % 6 == 0 and data.draw(st.booleans()):
        return fused([size // 2, size // 3, size // 6], data.draw(st.integers(1, max(1, size // 6))))
    return even(size, data.draw(st.integers(1, 4)))


def layout(data: st.DataObject, shapes: list[tuple[str, tuple[int, ...]]]) -> Index:
    tensors: dict[str, Indexed] = {}
    for number, (dtype, shape) in enumerate(shapes):
        cuts = [cut(data, size) for size in shape]
        copies, first = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
        tensors[f"t{number}"] = tensor(dtype, cuts, copies, first=first)
    return index(tensors)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    sizes = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), max_size=3).map(tuple)
    shapes = data.draw(st.lists(st.tuples(DTYPES, sizes), min_size=1, max_size=3))
    first, second = layout(data, shapes), layout(data, shapes)
    contents, tile = bytes_of(first), data.draw(st.sampled_from([8, 24, 1000]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "first", first, contents, crc32=True)
        write(folder / "wanted", second, contents, crc32=True)
        reshard(folder / "first", folder / "second", lambda _: second, tile=tile)
        same(folder / "wanted", folder / "second")
        reshard(folder / "second", folder / "third", lambda _: first, tile=tile)
        same(folder / "first", folder / "third")


def test_to_hugging_faces_layout_and_back(tmp_path: Path) -> None:
    data = bytes_of(SPLIT)
    names = list(SPLIT.tensors)
    files = {name: f"model-0000{1 + (names.index(name) > 3)}-of-00002.safetensors" for name in names}
    target = index(
        {
            name: Indexed(t.dtype, t.shape, t.dims, {}, {files[name]: next(iter(t.files.values()))})
            for name, t in WHOLE.tensors.items()
        }
    )
    write(tmp_path / "source", SPLIT, data, crc32=True)
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "source" / "manifest.json").write_text('{"files": {"stage_0.py": "0"}}')
    (tmp_path / "source" / "stage_0.py").write_text("")
    write(tmp_path / "wanted", target, data, hf=True)
    reshard(tmp_path / "source", tmp_path / "hf", lambda _: target, hf=True)
    found = {path.name for path in (tmp_path / "hf").iterdir()}
    assert found == {*files.values(), "model.safetensors.index.json", "config.json"}
    for file in files.values():
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "wanted" / file).read_bytes()
    reshard(tmp_path / "hf", tmp_path / "back", lambda _: SPLIT)
    (tmp_path / "source" / "manifest.json").unlink()
    (tmp_path / "source" / "stage_0.py").unlink()
    same(tmp_path / "source", tmp_path / "back")


def test_nothing_is_written_for_a_look(tmp_path: Path) -> None:
    write(tmp_path / "source", SPLIT, bytes_of(SPLIT))
    report = reshard(tmp_path / "source", tmp_path / "made", lambda _: MERGED, dry_run=True)
    assert report.files == 6
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_all_that_is_wrong_with_a_target_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path / "source", SPLIT, bytes_of(SPLIT))
    target = index(
        {
            "rows": tensor("F32", [even(64, 3)[:2], whole(33)]),
            "columns": tensor("F32", [whole(33), whole(64)]),
            "more": tensor("F32", [whole(3)]),
            **{name: SPLIT.tensors[name] for name in list(SPLIT.tensors)[3:]},
        }
    )
    with pytest.raises(CheckpointError) as caught:
        reshard(tmp_path / "source", tmp_path / "made", lambda _: target)
    assert str(caught.value).splitlines() == [
        "the target does not fit the source",
        "  `fused` is not in the target",
        "  `rows` is F32 [64, 33] in the source, and F32 [42, 33] in the target",
        "  `columns` is BF16 [33, 64] in the source, and F32 [33, 64] in the target",
        "  `more` is in the target, and not in the source",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_less_than_a_byte_is_cut_at_bytes(tmp_path: Path) -> None:
    source = index({"a": tensor("F4", [whole(4), whole(6)])})
    folder = tmp_path / "source"
    packed = bytes(range(12))
    folder.mkdir()
    start = header([Slot("a", "F4", (4, 6))], metadata(source, "f0.safetensors"))
    (folder / "f0.safetensors").write_bytes(start + packed)
    (folder / "fxpar.index.json").write_text(source.to_json())
    target = index({"a": tensor("F4", [whole(4), [[(0, 2)], [(2, 6)]]])})
    reshard(folder, tmp_path / "made", lambda _: target)
    found = [(tmp_path / "made" / f"f{n}.safetensors").read_bytes() for n in range(2)]
    assert found[0].endswith(bytes([0, 3, 6, 9]))
    assert found[1].endswith(bytes([1, 2, 4, 5, 7, 8, 10, 11]))
    target = index({"a": tensor("F4", [whole(4), [[(0, 3)], [(3, 6)]]])})
    with pytest.raises(
        CheckpointError, match=r"`a` F4 \[4, 6\]: elements of 4 bits can be cut at whole bytes only"
    ):
        reshard(folder, tmp_path / "other", lambda _: target)


def sparse(folder: Path, layout: Index) -> Path:
    """A checkpoint of zeros that takes no room."""
    folder.mkdir()
    for file in layout.files:
        slots = [Slot(name, each.dtype, each.local_shape(file)) for name, each in layout.tensors.items()]
        start = header(slots, metadata(layout, file))
        (folder / file).write_bytes(start)
        os.truncate(folder / file, len(start) + sum(slot.bytes for slot in slots))
    (folder / "fxpar.index.json").write_text(layout.to_json())
    return folder


def test_a_tensor_of_fifty_gigabytes(tmp_path: Path) -> None:
    one = index({"a": tensor("F32", [whole(50_000), whole(250_000)])})
    four = index({"a": tensor("F32", [whole(50_000), even(250_000, 4)])})
    made = convert(open_folder(sparse(tmp_path / "source", one)), lambda _: four, False)
    assert made.bytes == made.read == 50_000_000_000
    assert [size - size % 10**9 for size in made.sizes.values()] == [12 * 10**9] * 4


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A tensor of 256 MiB, columns of it in four files."""
    one = index({"a": tensor("F32", [whole(4096), whole(16384)])})
    sparse(tmp_path / "source", one)
    four = index({"a": tensor("F32", [whole(4096), even(16384, 4)])})
    (tmp_path / "four.json").write_text(four.to_json())
    check = (
        "import resource, sys; from pathlib import Path; from fxpar.checkpoint.index import Index;"
        "from fxpar.checkpoint.reshard import reshard; place = Path(sys.argv[1]);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; before = peak();"
        "reshard(place / 'source', place / 'made', lambda _: Index.read(place / 'four.json'));"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, tmp_path], check=True, stdout=subprocess.PIPE, text=True
    )
    assert int(done.stdout) < 64
    shutil.rmtree(tmp_path / "made")


def test_torch_is_not_needed() -> None:
    check = "import sys, fxpar.checkpoint.reshard as r; sys.exit(bool({'torch', 'safetensors'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", check], check=True)
