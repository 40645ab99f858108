"""The header of a safetensors file, read strictly: what is not said plainly and once is an error.

    8 bytes: length of the header | header: JSON, padded with spaces | body: the tensors, without holes

No torch here, and nothing of the body is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.jsonfile import once
from fxpar.errors import CheckpointError

#: A header has fewer bytes than this; safetensors itself reads no longer one.
LONGEST = 100_000_000
#: The most dims of a tensor, and the largest size of one.
RANK, LARGEST = 32, 2**63 - 1
DIGITS = len(str(LARGEST))
METADATA = "__metadata__"


class Span(NamedTuple):
    """A tensor of a file: dtype as safetensors writes it, shape, and the bytes [start, stop) of the body."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A file: its bytes, when it was changed (ns), a sha256 of its header, its tensors, where the body starts."""

    path: Path
    size: int
    changed: int
    digest: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, Span]
    body: int

    def start(self, name: str) -> int:
        """The byte of the file at which a tensor starts."""
        return self.body + self.tensors[name].start

    def unchanged(self) -> bool:
        """Whether the file still has the size and the time of change that it had."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.size, self.changed)


def read(path: Path) -> Header:
    """Read the header of a file. Raises CheckpointError, which names the file, for what is not safetensors."""
    try:
        # Opening a pipe would wait for whoever writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = _text(file, status.st_size)
        metadata, tensors = parse(text, status.st_size - 8 - len(text))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    digest = hashlib.sha256(text).hexdigest()
    return Header(path, status.st_size, status.st_mtime_ns, digest, metadata, tensors, 8 + len(text))


def _text(file: BinaryIO, size: int) -> bytes:
    """The header of a file of that many bytes. Raises ValueError."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8:
        raise ValueError(f"a safetensors file begins with 8 bytes, this one has {len(first)}")
    if length >= LONGEST:
        raise ValueError(f"its header would have {length} bytes, and less than {LONGEST} are read")
    if length > size - 8:
        raise ValueError(f"its header would have {length} bytes, and only {size - 8} follow: it was cut off")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"its header has {length} bytes, and only {len(text)} could be read")
    return text


def parse(text: bytes, body: int) -> tuple[dict[str, str], dict[str, Span]]:
    """The metadata and the tensors of a header whose body has that many bytes. Raises ValueError."""
    if not text.startswith(b"{"):
        raise ValueError("its header does not begin with `{`")
    fields = _json(text)
    metadata = fields.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"`{METADATA}` is not a mapping of strings to strings")
    tensors = {sys.intern(name): _span(name, entry) for name, entry in fields.items()}
    _check_body(tensors, body)
    return metadata, tensors


def _json(text: bytes) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8")
        fields: dict[str, Any] = json.loads(
            decoded, object_pairs_hook=once, parse_constant=_refuse, parse_float=_refuse, parse_int=_number
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    return fields


def _number(text: str) -> int:
    """A whole number; one of many digits would be slow to read, and no size has them."""
    return int(text) if len(text) <= DIGITS else LARGEST + 1


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"its header has the number {text}, and only whole numbers mean anything there")


def _span(name: str, entry: Any) -> Span:
    if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError(f"the name {name!a} is not Unicode")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"`{name}` does not have exactly `dtype`, `shape` and `data_offsets`")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in dtypes.BITS:
        raise ValueError(f"`{name}` has the dtype {code!r}, which safetensors does not know")
    if not _sizes(shape) or len(shape) > RANK:
        raise ValueError(
            f"`{name}` has the shape {shape!r:.80}: at most {RANK} whole numbers from 0 on are one"
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"`{name}` has the data_offsets {offsets!r:.80}, not a start and an end")
    try:
        wanted = dtypes.size(code, tuple(shape))
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from error
    if wanted != offsets[1] - offsets[0]:
        raise ValueError(
            f"`{name}` is {code} {shape}, which takes {wanted} bytes, and has {offsets[1] - offsets[0]}"
        )
    return Span(code, tuple(shape), *offsets)


def _sizes(data: Any) -> bool:
    """Whether data are whole numbers from 0 on; `true` is none."""
    return isinstance(data, list) and all(type(each) is int and 0 <= each <= LARGEST for each in data)


def _check_body(tensors: Mapping[str, Span], body: int) -> None:
    """Raise ValueError unless the tensors fill the body, one behind the other."""
    end, before = 0, ""
    for name, span in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if span.start > end:
            raise ValueError(f"no tensor has the bytes {end} to {span.start} of the body, before `{name}`")
        if span.start < end:
            raise ValueError(
                f"`{before}` and `{name}` overlap: one ends at {end}, the other starts at {span.start}"
            )
        end, before = span.stop, name
    if body < end:
        raise ValueError(f"its tensors take {end} bytes, and only {body} are there: it was cut off")
    if body > end:
        raise ValueError(f"its tensors take {end} bytes, and {body} are there: something was added")
