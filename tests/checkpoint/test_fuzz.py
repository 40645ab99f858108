"""Whatever stands in headers and indexes: a checkpoint or an FxparError, and nothing is written outside of DST."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import index, tensor, values, whole, write
from places import OURS, PARTS, PLACED, SHARDS, WEIGHT_MAP, hugging, snapshot

from fxpar import cli
from fxpar.checkpoint import layout
from fxpar.checkpoint.checking import diff, verify
from fxpar.checkpoint.index import metadata
from fxpar.checkpoint.inspection import inspection, text
from fxpar.checkpoint.layout import Slot
from fxpar.checkpoint.request import Request
from fxpar.checkpoint.reshard import reshard
from fxpar.errors import FxparError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DATA = {name: values(each, number) for number, (name, each) in enumerate(SHARDS.tensors.items())}
#: What is known of the dims, so that a mesh can be asked for.
DIMS = {
    "rows": ("ffn=6", "4"),
    "columns": ("4", "(heads=3 depth=2)"),
    "fused": ("cat[heads=3, (heads=3 2)]",),
}
KNOWN = replace(
    SHARDS,
    tensors={
        name: replace(each, dims=DIMS.get(name, each.dims), at=(number % 3,))
        for number, (name, each) in enumerate(SHARDS.tensors.items())
    },
    rows={"ffn": ("tp~",), "heads": ("tp",), "depth": ("ep", "tp?")},
    extends={"heads": "depth"},
    ties={"head": "rows"},
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be on disk before the test goes on."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def looked_at(root: Path) -> None:
    """Everything that reads `source` gives something or an FxparError, and changes nothing but `made`."""
    source, made = root / "source", root / "made"
    before, said = snapshot(root), list[str]()
    requests = [
        (Request({"tp": 2}), False),
        (Request({"tp": 3, "pp": 2, "ep": 2}), False),
        (Request(hf=True, most=40), True),
    ]
    looks: list[Callable[[], object]] = [
        lambda: text(inspection(source)),
        lambda: verify(source),
        lambda: diff(source, root / "whole"),
        lambda: diff(root / "whole", source),
        lambda: reshard(root / "whole", root / "made", Request({"tp": 2}, like=source).target()),
        *(
            lambda r=r, hf=hf: reshard(source, made, r.target(), hf=hf, force=True, tile=64)
            for r, hf in requests
        ),
    ]
    for look in looks:
        try:
            look()
        except FxparError as error:
            said.append(str(error))
    assert all(len(each) < 100_000 for each in said)
    with redirect_stdout(stream()), redirect_stderr(stream("backslashreplace")):
        assert cli.run(["inspect", str(source)]) in (0, 2)
    after = snapshot(root)
    assert {name: data for name, data in after.items() if name.split("/")[0] != "made"} == before


def stream(errors: str = "strict") -> io.TextIOWrapper:
    """A stream as that of a process: stdout is strict, stderr writes escapes."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)


@contextmanager
def folder(hf: bool) -> Iterator[Path]:
    """A checkpoint, and the same as one file."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "source", hugging(PLACED) if hf else KNOWN, DATA, crc32=not hf, hf=hf)
        one = hugging(dict.fromkeys(PLACED, "model.safetensors"))
        write(root / "whole", one, DATA, hf=True)
        yield root


def test_what_is_not_changed_is_read() -> None:
    with folder(hf=False) as root:
        for target in (Request({"tp": 3, "pp": 2, "ep": 2}), Request({"pp": 3}), Request(hf=True)):
            reshard(root / "source", root / "made", target.target(), hf=target.hf, force=True)
            assert diff(root / "source", root / "made").wrong == []
            shutil.rmtree(root / "made")
        looked_at(root)


NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1]), st.floats()
)
WORDS = st.sampled_from(
    [
        "",
        "rows",
        "ffn",
        "heads",
        "tp",
        "pp~",
        "ep?",
        "F32",
        "F4",
        "BOOL",
        "../x",
        "/etc/passwd",
        "f0.safetensors",
        "f1.safetensors",
        "ffn=6",
        "(heads=3 2)",
        "cat[3, 3]",
        "(ffn=4611686018427387904 heads=2)",
        "9" * 5000,
        "x=" + "9" * 30,
        "(" * 200,
        "cat[" * 50,
        "\udc80",
        "\ud800",
        "\0",
        "a" * 300,
        "\x1b[31m",
    ]
)
SCALARS = st.one_of(NUMBERS, WORDS, st.booleans(), st.none())
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within JSON."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def mutated(draw: st.DataObject, data: Any) -> Any:
    """Some values are replaced, removed, renamed, or put somewhere else."""
    for _ in range(draw.draw(st.integers(1, 3))):
        path = draw.draw(st.sampled_from(list(places(data))))
        if not path:
            continue
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        how = draw.draw(st.sampled_from(["replace", "replace", "remove", "rename", "move"]))
        if how == "replace":
            parent[path[-1]] = draw.draw(ANYTHING)
        elif how == "remove":
            del parent[path[-1]]
        elif how == "rename" and isinstance(parent, dict):
            parent[draw.draw(WORDS)] = parent.pop(path[-1])
        elif how == "move":
            other = draw.draw(st.sampled_from([each for each in places(data) if each]))
            value = json.loads(json.dumps(parent[path[-1]]))
            place = data
            for key in other[:-1]:
                place = place[key]
            place[other[-1]] = value
    return data


@FUZZ
@given(st.data())
def test_an_index_that_was_edited(draw: st.DataObject) -> None:
    with folder(hf=False) as root:
        path = root / "source" / OURS
        path.write_text(json.dumps(mutated(draw, json.loads(path.read_text()))))
        looked_at(root)


@FUZZ
@given(st.data())
def test_an_index_of_hugging_face_that_was_edited(draw: st.DataObject) -> None:
    with folder(hf=True) as root:
        path = root / "source" / WEIGHT_MAP
        path.write_text(json.dumps(mutated(draw, json.loads(path.read_text()))))
        looked_at(root)


def spliced(draw: st.DataObject, old: bytes) -> bytes:
    """Bytes of which some are others, more or fewer."""
    start = draw.draw(st.integers(0, len(old)))
    stop = draw.draw(st.integers(start, min(len(old), start + 40)))
    new = draw.draw(st.one_of(st.binary(max_size=20), ANYTHING.map(lambda each: json.dumps(each).encode())))
    return old[:start] + new + old[stop:]


@FUZZ
@given(st.data(), st.sampled_from([(False, OURS), (True, WEIGHT_MAP)]))
def test_bytes_of_an_index(draw: st.DataObject, which: tuple[bool, str]) -> None:
    with folder(hf=which[0]) as root:
        path = root / "source" / which[1]
        path.write_bytes(spliced(draw, path.read_bytes()))
        looked_at(root)


@FUZZ
@given(st.data(), st.sampled_from([(False, "f1.safetensors"), (True, PARTS[0])]))
def test_bytes_of_a_header(draw: st.DataObject, which: tuple[bool, str]) -> None:
    with folder(hf=which[0]) as root:
        path = root / "source" / which[1]
        data = path.read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        header = spliced(draw, data[:length].rstrip())
        if draw.draw(st.booleans()):  # The length is right again.
            text = header[8:] + b" " * max(0, length - len(header))
            header = len(text).to_bytes(8, "little") + text
        path.write_bytes(header + data[length:])
        looked_at(root)


@FUZZ
@given(st.data(), st.sampled_from([(False, "f1.safetensors"), (True, PARTS[0])]))
def test_a_header_that_was_edited(draw: st.DataObject, which: tuple[bool, str]) -> None:
    """Its `__metadata__` too, and what fxpar and torch keep in there as JSON."""
    with folder(hf=which[0]) as root:
        path = root / "source" / which[1]
        data = path.read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        fields = json.loads(data[8:length])
        inside = [key for key in ("fxpar", "DCP_SHARDING_INFO") if key in fields["__metadata__"]]
        if inside and draw.draw(st.booleans()):
            key = draw.draw(st.sampled_from(inside))
            own = mutated(draw, json.loads(fields["__metadata__"][key]))
            fields["__metadata__"][key] = json.dumps(own)
        else:
            fields = mutated(draw, fields)
        text = json.dumps(fields).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[length:])
        looked_at(root)


@pytest.mark.parametrize("mesh", [{"tp": 2}, {"tp": 3}, {"ep": 1 << 40}, {"pp": 1 << 40}])
def test_claimed_sizes_take_no_memory(tmp_path: Path, mesh: dict[str, int]) -> None:
    """A tensor of no bytes may have dims of any size, and a mesh any number of ranks."""
    name, size = "f0.safetensors", 1 << 62
    made = index({"a": tensor("F32", [whole(size), whole(0)])})
    known = replace(made.tensors["a"], dims=("(a=2305843009213693952 b=2)", "0"))
    source = replace(made, tensors={"a": known}, rows={"b": ("tp",), "a": ("tp~",)})
    (tmp_path / "source").mkdir()
    header = layout.header([Slot("a", "F32", (size, 0))], metadata(source, name))
    (tmp_path / "source" / name).write_bytes(header)
    (tmp_path / "source" / OURS).write_text(source.to_json())
    assert verify(tmp_path / "source").wrong == []
    with pytest.raises(FxparError, match=r"does not divide|would be cut into|ranks: it may have"):
        reshard(tmp_path / "source", tmp_path / "made", Request(mesh).target())
