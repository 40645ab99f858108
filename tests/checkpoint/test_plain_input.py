"""What is unusual and simply works, or is done with little memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import even, index, tensor, values, whole, write
from safetensors.torch import load_file, save_file
from torch import nn

import fxpar
from fxpar.checkpoint import dtypes, files, layout
from fxpar.checkpoint.checking import diff, verify
from fxpar.checkpoint.index import Index, metadata
from fxpar.checkpoint.inspection import inspection
from fxpar.checkpoint.layout import Slot
from fxpar.checkpoint.request import Request
from fxpar.checkpoint.reshard import reshard
from fxpar.errors import CheckpointError

MIB = 1 << 20
LINE = r"`a` F\w+ \[3, \d+\]: elements of \d bits can be cut at whole bytes only|`a`: .* ends within a byte"


def there_and_back(root: Path, first: Index, second: Index) -> None:
    """Both ways the bytes are those of a checkpoint that was written so."""
    data = {name: values(each, number) for number, (name, each) in enumerate(first.tensors.items())}
    write(root / "first", first, data, crc32=True)
    write(root / "second", second, data, crc32=True)
    reshard(root / "first", root / "to", lambda _: second)
    reshard(root / "to", root / "back", lambda _: first)
    for wanted, made in (("second", "to"), ("first", "back")):
        for path in (root / wanted).iterdir():
            assert path.read_bytes() == (root / made / path.name).read_bytes()
        assert verify(root / made).wrong == []
    found = diff(root / "first", root / "to")
    assert (found.tensors, found.wrong) == (len(data), [])


@pytest.mark.parametrize("dtype", sorted(code for code, bits in dtypes.BITS.items() if bits >= 8))
def test_every_dtype(tmp_path: Path, dtype: str) -> None:
    """0-dim and empty tensors among them, of bool, ints, bf16 and fp8: 3.5 stays 3.5."""
    shapes: dict[str, tuple[list[object], list[object]]] = {
        "scalar": ([], []),
        "empty": ([whole(0), whole(3)], [whole(0), whole(3)]),
        "empty inside": ([even(4, 2), whole(0)], [whole(4), whole(0)]),
        "one": ([whole(1)], [whole(1)]),
        "rows": ([even(6, 3), whole(5)], [even(6, 2), whole(5)]),
        "columns": ([whole(5), even(6, 3)], [whole(5), even(6, 2)]),
    }
    first = index({name: tensor(dtype, cuts) for name, (cuts, _) in shapes.items()})
    second = index({name: tensor(dtype, cuts) for name, (_, cuts) in shapes.items()})
    there_and_back(tmp_path, first, second)


def test_a_number_without_dims(tmp_path: Path) -> None:
    save_file({"a": torch.tensor(3.5), "b": torch.tensor(True)}, tmp_path / "model.safetensors")
    target = index({"a": tensor("F32", [], 2), "b": tensor("BOOL", [], 2)})
    reshard(tmp_path / "model.safetensors", tmp_path / "made", lambda _: target)
    for number in range(2):
        found = load_file(tmp_path / "made" / f"f{number}.safetensors")
        assert (found["a"].item(), found["b"].item()) == (3.5, True)


def test_a_name_without_letters(tmp_path: Path) -> None:
    save_file({"": torch.ones(2), "a": torch.zeros(2)}, tmp_path / "model.safetensors")
    reshard(tmp_path / "model.safetensors", tmp_path / "made", Request(hf=True).target(), hf=True)
    assert diff(tmp_path / "model.safetensors", tmp_path / "made").wrong == []


def packed(folder: Path, code: str, shape: tuple[int, ...]) -> Index:
    """A tensor of elements of less than a byte."""
    size = dtypes.size(code, shape)
    source = index({"a": tensor(code, [whole(size) for size in shape])})
    start = layout.header([Slot("a", code, shape)], metadata(source, "f0.safetensors"))
    folder.mkdir()
    (folder / "f0.safetensors").write_bytes(start + np.random.default_rng(0).bytes(size))
    (folder / "fxpar.index.json").write_text(source.to_json())
    return source


@pytest.mark.parametrize(("code", "width"), [("F4", 2), ("F6_E2M3", 4), ("F6_E3M2", 4)])
def test_less_than_a_byte(tmp_path: Path, code: str, width: int) -> None:
    """Cut on whole bytes, and only there."""
    source = packed(tmp_path / "source", code, (3, 4 * width))
    cut = index({"a": tensor(code, [whole(3), even(4 * width, 4)])})
    reshard(tmp_path / "source", tmp_path / "cut", lambda _: cut)
    reshard(tmp_path / "cut", tmp_path / "back", lambda _: source)
    assert diff(tmp_path / "source", tmp_path / "cut").wrong == []
    assert (tmp_path / "back" / "f0.safetensors").read_bytes() == (
        tmp_path / "source" / "f0.safetensors"
    ).read_bytes()
    for edge, line in ((1, rf"f0\.safetensors .*`a`: {code} \[3, 1\] ends within a byte"), (2, LINE)):
        if code == "F4" and edge == 2:
            continue  # That is a whole byte.
        within = index({"a": tensor(code, [whole(3), [[(0, edge)], [(edge, 4 * width)]]])})
        with pytest.raises(CheckpointError, match=line):
            reshard(tmp_path / "source", tmp_path / "other", lambda _, target=within: target)
        assert not (tmp_path / "other").exists()


class Tied(nn.Module):
    """Tied embeddings, and weights that do not lie in memory as they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(48, 8), nn.Linear(8, 48, bias=False)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head.weight = self.table.weight
        self.up.weight = nn.Parameter(torch.randn(8, 16).t())
        self.down.weight = nn.Parameter(torch.randn(8, 32)[:, ::2])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        logits: torch.Tensor = self.head(x + self.down(self.up(x).relu()))
        return logits


def test_tied_weights_and_sources_that_are_not_contiguous(tmp_path: Path) -> None:
    model = Tied()
    assert not model.up.weight.is_contiguous()
    assert not model.down.weight.is_contiguous()
    fxpar.partition(model, fxpar.Plan(tp=2), {"ids": torch.zeros(2, 4).long()}, tmp_path / "two")
    reshard(tmp_path / "two", tmp_path / "four", Request({"tp": 4}).target())
    assert inspection(tmp_path / "four")["ties"] == {"head.weight": "table.weight"}
    reshard(tmp_path / "four", tmp_path / "hf", Request(hf=True).target(), hf=True)
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert found.keys() == model.state_dict().keys() - {"head.weight"}
    assert all(torch.equal(found[name], model.state_dict()[name]) for name in found)


def test_10_000_tensors(tmp_path: Path) -> None:
    """In little memory, and without a second of planning a thousand of them."""
    names = [f"layers.{number}.weight" for number in range(10_000)]
    source = index({name: tensor("F32", [even(4, 2)]) for name in names})
    target = index({name: tensor("F32", [whole(4)]) for name in names})
    data = {name: np.full(16, number % 251, np.uint8) for number, name in enumerate(names)}
    write(tmp_path / "source", source, data)
    report = reshard(tmp_path / "source", tmp_path / "made", lambda _: target)
    assert (report.tensors, report.read) == (10_000, 160_000)
    found = load_file(tmp_path / "made" / "f0.safetensors")
    assert all(found[name].numpy().tobytes() == data[name].tobytes() for name in names)


def holes(folder: Path, source: Index) -> None:
    """A checkpoint whose tensors have no bytes on disk."""
    folder.mkdir()
    for file in source.files:
        slots = [
            Slot(name, t.dtype, t.local_shape(file)) for name, t in source.tensors.items() if file in t.files
        ]
        laid = layout.lay(slots, metadata(source, file))
        (folder / file).write_bytes(laid.header)
        os.truncate(folder / file, laid.size)
    (folder / "fxpar.index.json").write_text(source.to_json())


BIG = index({"a": tensor("BF16", [whole(100_000), even(250_000, 2)])})


@pytest.mark.parametrize(
    "target",
    [
        index({"a": tensor("BF16", [whole(100_000), whole(250_000)])}),
        index({"a": tensor("BF16", [even(100_000, 8), whole(250_000)])}),
        index({"a": tensor("BF16", [whole(100_000), even(250_000, 8)])}),
    ],
    ids=["whole", "rows", "columns"],
)
def test_a_tensor_of_50_gb(tmp_path: Path, target: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proved, and begun to be copied, in a bounded memory; it is of holes, and 100 MB of it are enough to see that."""
    state = os.statvfs(tmp_path)

    class Large:
        f_bavail, f_frsize = 1 << 40, state.f_frsize

    def stop(done: int, total: int) -> None:
        assert total == 50_000_000_000
        if done > 100_000_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "statvfs", lambda _: Large)
    monkeypatch.setattr(files.os, "posix_fallocate", lambda file, _, size: os.truncate(file, size))
    holes(tmp_path / "source", BIG)
    tracemalloc.start()
    try:
        report = reshard(tmp_path / "source", tmp_path / "made", lambda _: target, dry_run=True)
        assert report.read == 50_000_000_000
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
        with pytest.raises(KeyboardInterrupt):
            reshard(tmp_path / "source", tmp_path / "made", lambda _: target, progress=stop)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "made").exists()
