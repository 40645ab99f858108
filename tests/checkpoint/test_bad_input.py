"""What is wrong with a checkpoint is an error that names file and tensor; nothing is written, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import DATA, FILES, OURS, PARTS, PLACED, SHARDS, WEIGHT_MAP, Place, hugging

from fxpar.checkpoint import layout
from fxpar.checkpoint.header import LONGEST
from fxpar.checkpoint.index import metadata
from fxpar.checkpoint.layout import Slot
from fxpar.errors import CheckpointError


@pytest.fixture
def ours(tmp_path: Path) -> Place:
    """A source in fxpar's layout."""
    return Place(tmp_path, hf=False)


@pytest.fixture
def theirs(tmp_path: Path) -> Place:
    """A source in Hugging Face's layout."""
    return Place(tmp_path, hf=True)


@pytest.mark.parametrize("file", FILES)
def test_missing_shard(ours: Place, file: str) -> None:
    (ours.source / file).unlink()
    ours.refuses("is no whole checkpoint", f"{file} is missing")


@pytest.mark.parametrize("file", PARTS)
def test_missing_shard_of_hugging_face(theirs: Place, file: str) -> None:
    (theirs.source / file).unlink()
    theirs.refuses("is no whole checkpoint", f"{file} is missing")


@pytest.mark.parametrize("number", range(3))
def test_shard_that_no_index_names(ours: Place, number: int) -> None:
    """Neither the file nor what the index said of it is there: the box is missing."""
    (ours.source / FILES[number]).unlink()

    def forget(data: dict[str, Any]) -> None:
        for tensor in data["tensors"].values():
            tensor["files"].pop(FILES[number], None)
            tensor["crc32"].pop(FILES[number], None)
        data["tensors"] = {name: tensor for name, tensor in data["tensors"].items() if tensor["files"]}

    ours.edit(forget)
    ours.refuses(
        f"`rows` [6, 4]: no file has the box [2, 4] at [{2 * number}, 0]",
        f"`columns` [4, 6]: no file has the box [4, 2] at [0, {2 * number}]",
    )


def test_file_of_hugging_face_that_no_index_names(theirs: Place) -> None:
    """Its tensors would be lost without a word."""
    theirs.edit(lambda data: [data["weight_map"].pop(name) for name in ("norm", "scale")], WEIGHT_MAP)
    theirs.refuses(f"{PARTS[2]} is there, and not in {WEIGHT_MAP}")


def test_key_in_the_index_and_in_no_file(ours: Place) -> None:
    ours.edit(lambda data: data["tensors"].update(more=data["tensors"]["norm"]))
    ours.refuses(*(f"{file}: `more` is in the index, and not in the file" for file in FILES))


def test_key_in_a_file_and_not_in_the_index(ours: Place) -> None:
    ours.edit(lambda data: data["tensors"].pop("norm"))
    ours.refuses(*(f"{file}: `norm` is in the file, and not in the index" for file in FILES))


def test_key_of_hugging_faces_index_in_no_file(theirs: Place) -> None:
    theirs.edit(lambda data: data["weight_map"].update(more=PARTS[1]), WEIGHT_MAP)
    theirs.refuses(f"{PARTS[1]}: `more` is in {WEIGHT_MAP}, and not in the file")


def test_key_in_a_file_and_not_in_hugging_faces_index(theirs: Place) -> None:
    theirs.edit(lambda data: data["weight_map"].pop("fused"), WEIGHT_MAP)
    theirs.refuses(f"{PARTS[1]}: `fused` is in the file, and not there by {WEIGHT_MAP}")


def test_key_of_hugging_faces_index_in_another_file(theirs: Place) -> None:
    theirs.edit(lambda data: data["weight_map"].update(fused=PARTS[0]), WEIGHT_MAP)
    theirs.refuses(
        f"{PARTS[1]}: `fused` is in the file, and not there by {WEIGHT_MAP}",
        f"{PARTS[0]}: `fused` is in {WEIGHT_MAP}, and not in the file",
    )


def test_overlapping_shards(ours: Place) -> None:
    """Boxes that are not the same are no replicas, whatever lies in them: torch takes the last one's bytes."""

    def overlap(data: dict[str, Any]) -> None:
        data["tensors"]["rows"]["files"][FILES[1]] = [[[1, 0], [2, 4], [0, 0]]]

    ours.edit(overlap)
    ours.refuses(
        f"`rows` [6, 4]: [1, 4] at [1, 0] is in different boxes that overlap, in {FILES[0]}, {FILES[1]}",
        "`rows` [6, 4]: no file has the box [1, 4] at [3, 0]",
    )


def test_one_tensor_in_two_files_of_hugging_face(theirs: Place) -> None:
    other = {name: file for name, file in PLACED.items() if file == PARTS[0]} | {"norm": PARTS[0]}
    folder = theirs.root / "other"
    from layouts import contents

    folder.mkdir()
    (theirs.source / PARTS[0]).write_bytes(contents(hugging(other), PARTS[0], DATA, hf=True))
    folder.rmdir()
    theirs.refuses(f"{PARTS[0]}: `norm` is in the file, and not there by {WEIGHT_MAP}")


def shard(place: Place, number: int, **dtypes: str) -> None:
    """Write a file of the source anew, with other dtypes of the same width."""
    held = {name: SHARDS.tensors[name] for name in SHARDS.names(FILES[number])}
    slots = layout.ordered(
        Slot(name, dtypes.get(name, each.dtype), each.local_shape(FILES[number]))
        for name, each in held.items()
    )
    start = layout.header(slots, metadata(SHARDS, FILES[number]))
    (place.source / FILES[number]).write_bytes(start + bytes(sum(slot.bytes for slot in slots)))


@pytest.mark.parametrize("number", range(3))
def test_mixed_dtypes_of_one_tensor(ours: Place, number: int) -> None:
    shard(ours, number, columns="F16")
    ours.refuses(f"{FILES[number]}: `columns` is F16 [4, 2], and BF16 [4, 2] in the index")


@pytest.mark.parametrize("size", [0, 5, 8, 100, 4096, -1])
def test_truncated_file(ours: Place, size: int) -> None:
    path = ours.source / FILES[1]
    os.truncate(path, size % path.stat().st_size if size else 0)
    ours.refuses(f"{FILES[1]}: ", "begins with 8 bytes" if size in (0, 5) else "it was cut off")


@pytest.mark.parametrize("more", [b"\0", b"x" * 5000])
def test_padded_file(ours: Place, more: bytes) -> None:
    path = ours.source / FILES[1]
    path.write_bytes(path.read_bytes() + more)
    ours.refuses(f"{FILES[1]}: its tensors take ", "are there: something was added")


def test_corrupted_header(ours: Place) -> None:
    ours.patch(FILES[1], 8, b"[")
    ours.refuses(f"{FILES[1]}: its header does not begin with `{{`")


@pytest.mark.parametrize("file", FILES)
def test_corrupted_tensor(ours: Place, file: str) -> None:
    ours.patch(file, -1, bytes([(ours.source / file).read_bytes()[-1] ^ 1]))
    ours.refuses(f"{file}: `fused` has the crc32 ", "when it was written", looks=False)


def test_corrupted_index(ours: Place) -> None:
    path = ours.source / OURS
    os.truncate(path, path.stat().st_size - 3)
    ours.refuses(f"{OURS} is damaged")


def test_corrupted_index_of_hugging_face(theirs: Place) -> None:
    path = theirs.source / WEIGHT_MAP
    os.truncate(path, path.stat().st_size - 3)
    theirs.refuses(f"{WEIGHT_MAP}: no `weight_map` can be read")


def test_swapped_files(ours: Place) -> None:
    """Their tensors have the same names, dtypes and shapes."""
    first, second = ours.source / FILES[1], ours.source / FILES[2]
    first.rename(ours.root / "x")
    second.rename(first)
    (ours.root / "x").rename(second)
    ours.refuses(f"{FILES[1]} was written as {FILES[2]}", f"{FILES[2]} was written as {FILES[1]}")


def test_duplicate_key_in_a_header(theirs: Place) -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    text = f'{{"a":{entry},"a":{entry}}}'.encode()
    (theirs.source / PARTS[0]).write_bytes(len(text).to_bytes(8, "little") + text + b"1")
    theirs.refuses(f"{PARTS[0]}: the key `a` stands twice")


def test_duplicate_key_in_the_index(ours: Place) -> None:
    text = (ours.source / OURS).read_text()
    (ours.source / OURS).write_text(text.replace('"columns":', '"rows":'))
    ours.refuses(f"{OURS} is damaged", "the key `rows` stands twice")


def test_duplicate_key_in_hugging_faces_index(theirs: Place) -> None:
    text = (theirs.source / WEIGHT_MAP).read_text()
    (theirs.source / WEIGHT_MAP).write_text(text.replace('"fused"', '"columns"'))
    theirs.refuses(f"{WEIGHT_MAP}: no `weight_map` can be read", "the key `columns` stands twice")


OUTSIDE = ["../{}", "/{}", "sub/{}", "..", ".", "", "a\0b", "x\\{}"]


@pytest.mark.parametrize("name", [each.format(FILES[1]) for each in OUTSIDE])
def test_path_out_of_the_folder_in_files(ours: Place, name: str) -> None:
    shutil.copy(ours.source / FILES[1], ours.root / FILES[1])

    def move(data: dict[str, Any]) -> None:
        for tensor in data["tensors"].values():
            for key in ("files", "crc32"):
                tensor[key] = {name if file == FILES[1] else file: part for file, part in tensor[key].items()}

    ours.edit(move)
    ours.refuses(f"{name} is not a plain file name")


@pytest.mark.parametrize("name", [each.format(FILES[1]) for each in OUTSIDE])
def test_path_out_of_the_folder_in_ranks(ours: Place, name: str) -> None:
    ours.edit(lambda data: data["ranks"].__setitem__(1, name))
    ours.refuses(f"{name} is not a plain file name")


@pytest.mark.parametrize("name", [each.format(PARTS[1]) for each in OUTSIDE])
def test_path_out_of_the_folder_in_hugging_faces_index(theirs: Place, name: str) -> None:
    shutil.copy(theirs.source / PARTS[1], theirs.root / PARTS[1])
    theirs.edit(lambda data: data["weight_map"].update(fused=name, columns=name), WEIGHT_MAP)
    theirs.refuses(f"{name} is not a plain file name")


def link_out(place: Place, name: str, *, absolute: bool) -> None:
    """Replace a file of the source by a link to it beside the folder."""
    (place.source / name).rename(place.root / name)
    (place.source / name).symlink_to(place.root / name if absolute else f"../{name}")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", [FILES[0], OURS, "config.json"])
def test_link_out_of_the_folder(ours: Place, name: str, absolute: bool) -> None:
    link_out(ours, name, absolute=absolute)
    ours.refuses(f"{name} is a link that leads out of the folder")


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", [PARTS[0], WEIGHT_MAP, "config.json"])
def test_link_out_of_the_folder_of_hugging_face(theirs: Place, name: str, absolute: bool) -> None:
    link_out(theirs, name, absolute=absolute)
    theirs.refuses(f"{name} is a link that leads out of the folder")


@pytest.mark.parametrize("name", [FILES[0], OURS])
def test_link_to_nothing(ours: Place, name: str) -> None:
    (ours.source / name).unlink()
    (ours.source / name).symlink_to("absent")
    ours.refuses(f"{name} is a link to nothing")


@pytest.mark.parametrize("name", [FILES[0], OURS])
def test_folder_in_place_of_a_file(ours: Place, name: str) -> None:
    (ours.source / name).unlink()
    (ours.source / name).mkdir()
    ours.refuses(f"{name} is no file")


def test_long_name(ours: Place) -> None:
    """Longer than a system takes."""
    name = "f" * 300
    ours.edit(lambda data: data["tensors"]["scale"].update(files={name: [[[], [], []]]}, crc32={}))
    ours.refuses(f"{name} cannot be looked at: File name too long")


@pytest.mark.parametrize("real", [False, True])
def test_header_of_100_mb(ours: Place, real: bool) -> None:
    """One that is as long as it says, in a file with holes, and one that only says so: neither is read."""
    path = ours.source / FILES[2]
    path.write_bytes(LONGEST.to_bytes(8, "little") + b"{")
    if real:
        os.truncate(path, LONGEST + 8)
    ours.refuses(f"{FILES[2]}: its header would have {LONGEST} bytes, and less than {LONGEST} are read")


def test_long_index(ours: Place) -> None:
    os.truncate(ours.source / OURS, 1 << 40)
    ours.refuses(f"{OURS}", f"has {1 << 40} bytes")


def test_long_index_of_hugging_face(theirs: Place) -> None:
    os.truncate(theirs.source / WEIGHT_MAP, 1 << 40)
    theirs.refuses(f"{WEIGHT_MAP}", f"has {1 << 40} bytes")


@pytest.mark.parametrize("summed", [False, True])
def test_two_replicas_that_differ(ours: Place, summed: bool) -> None:
    """Also where the checksum is that of the replica that was changed."""
    from zlib import crc32

    bits = bytearray(DATA["norm"].tobytes())
    bits[5] ^= 1
    text = (ours.source / FILES[2]).read_bytes()
    at = text.rindex(DATA["norm"].tobytes())
    ours.patch(FILES[2], at, bytes(bits))
    if summed:
        ours.edit(lambda data: data["tensors"]["norm"]["crc32"].update({FILES[2]: crc32(bits)}))
    ours.refuses(f"{FILES[2]}: `norm` differs at [1] from {FILES[0]}, and should be the same", looks=False)


@pytest.mark.parametrize("version", [3, 99, "3", None])
def test_index_of_another_version(ours: Place, version: object) -> None:
    ours.edit(lambda data: data.update(format=version))
    ours.refuses(f"{OURS} has format {version!r}, this fxpar reads 2")


def test_index_of_a_newer_version_says_what_would_do(ours: Place) -> None:
    ours.edit(lambda data: data.update(format=3, tensors=[], new={}))
    ours.refuses(f"{OURS} has format 3, this fxpar reads 2", "a newer fxpar wrote it: install that one")


def test_two_checkpoints_in_one_folder(theirs: Place) -> None:
    """Readers do not agree which of them it is."""
    shutil.copy(theirs.source / PARTS[0], theirs.source / "model.safetensors")
    theirs.refuses(f"model.safetensors is there, and not in {WEIGHT_MAP}")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda data: data["tensors"]["rows"].update(dims=["6", "8"]), "`rows` [6, 4]: its dim 1 is `8`"),
        (lambda data: data["tensors"]["rows"].update(dims=["6", "(4"]), "`(4` is no dim"),
        (lambda data: data["tensors"]["rows"].update(dims=["6", "1" * 5000]), "`rows`"),
        (lambda data: data["tensors"]["rows"].update(dtype="F33"), "`rows` has the dtype 'F33'"),
        (
            lambda data: data["tensors"]["rows"]["crc32"].update(other=1),
            "`rows` has the checksum 1 for other",
        ),
        (lambda data: data["tensors"]["rows"].update(shape=[6, 2**70]), "`rows`"),
        (lambda data: data["tensors"]["rows"].update(shape=[6]), "`rows`: a tensor of shape [6] has "),
        (lambda data: data["tensors"]["rows"].update(files={}), "`rows`: a tensor has no boxes"),
    ],
)
def test_index_that_contradicts_itself(
    ours: Place, change: Callable[[dict[str, Any]], object], line: str
) -> None:
    ours.edit(change)
    ours.refuses(line)


def test_names_of_any_length(ours: Place) -> None:
    """The error is not longer for them."""
    name = "n" * 1_000_000
    ours.edit(lambda data: data["tensors"].update({name: data["tensors"]["scale"]}))
    ours.refuses(f"{FILES[0]}: `{name[:900]}")
    with pytest.raises(CheckpointError) as caught:
        ours.reshard()
    assert len(str(caught.value)) < 5000


def test_thousands_of_boxes_that_are_not_the_whole(ours: Place) -> None:
    """Told in a time that grows with their number alone."""
    boxes = [[[at, at], [1, 1], [at, 0]] for at in range(3000)]

    def change(data: dict[str, Any]) -> None:
        entry = data["tensors"]["norm"] | {"shape": [3000, 3000], "dims": ["3000", "3000"], "crc32": {}}
        data["tensors"]["more"] = entry | {"files": {FILES[0]: boxes}}

    ours.edit(change)
    ours.refuses("`more` [3000, 3000]: no file has the box [1, 2999] at [0, 1]", "... and 5")


def test_all_that_is_wrong_is_said_at_once(ours: Place) -> None:
    (ours.source / FILES[0]).unlink()
    os.truncate(ours.source / FILES[1], 100)
    ours.edit(lambda data: data["tensors"]["rows"].update(dtype="F33"))
    ours.refuses(f"{FILES[0]} is missing", f"{FILES[1]}: its header would have", "`rows` has the dtype 'F33'")


def test_nothing_at_all(tmp_path: Path) -> None:
    place = Place(tmp_path, hf=True)
    (place.source / WEIGHT_MAP).write_text(json.dumps({"weight_map": {}}))
    place.refuses(*(f"{file} is there, and not in {WEIGHT_MAP}" for file in PARTS))
