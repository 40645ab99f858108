"""What has to hold before anything is copied. Each function lists all that is wrong, and names tensors and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from fxpar.checkpoint import dtypes, notation
from fxpar.checkpoint.box import Box
from fxpar.checkpoint.cover import faults, inside, local
from fxpar.checkpoint.header import LARGEST, RANK, Header
from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.transfer import Transfer
from fxpar.errors import CheckpointError


def sound(index: Index) -> list[str]:
    """Why the boxes of an index are not each tensor exactly once, replicas aside."""
    return [
        f"`{name}`{fault}"
        for name, tensor in index.tensors.items()
        for fault in (*_entry(tensor), *_parts(tensor))
    ]


def _entry(tensor: Indexed) -> Iterator[str]:
    if tensor.dtype not in dtypes.BITS:
        yield f" has the dtype {tensor.dtype!r}, which safetensors does not know"
    if not tensor.files:
        yield " lies in no file"
    for file, crc32 in tensor.crc32.items():
        if type(crc32) is not int or file not in tensor.files:
            yield f" has the checksum {crc32!r} for {file}, which means nothing"


def _parts(tensor: Indexed) -> Iterator[str]:
    """Why the parts of a tensor are not the whole of it, and of the tensor in each file."""
    shape = tensor.shape
    if len(shape) > RANK or not all(type(size) is int and 0 <= size <= LARGEST for size in shape):
        yield f" has the shape {list(shape)!r:.80}: at most {RANK} whole numbers from 0 on are one"
        return
    outside = [(f, part) for f, parts in tensor.files.items() for part in parts if not inside(shape, part)]
    for file, part in outside:
        yield f" {list(shape)} has no box {_said(part)}, which should be in {file}"
    for file, parts in tensor.files.items():
        if not parts:
            yield f" has no boxes in {file}"
    if outside or not all(tensor.files.values()):
        return
    yield from _cover(tensor)
    for file, parts in tensor.files.items():
        for twice, box in faults(local(parts), tuple(Box(part.local, part.sizes) for part in parts)):
            amount = "twice" if twice else "never"
            yield f" in {file} {list(local(parts))}: its boxes fill {box} {amount}"


def _cover(tensor: Indexed) -> Iterator[str]:
    boxes = [Box(part.offsets, part.sizes) for parts in tensor.files.values() for part in parts]
    for twice, fault in faults(tensor.shape, tuple(dict.fromkeys(boxes))):
        if twice:
            holders = [file for file, parts in tensor.files.items() if any(_meet(fault, p) for p in parts)]
            yield f" {list(tensor.shape)}: {fault} is in different boxes that overlap, in {', '.join(holders)}"
        else:
            yield f" {list(tensor.shape)}: no file has the box {fault}"
    for file, parts in tensor.files.items():
        mine = Counter(Box(part.offsets, part.sizes) for part in parts)
        for box in (box for box, count in mine.items() if prod(box.sizes) and count > 1):
            yield f" has the box {box} twice in {file}"


def _meet(box: Box, part: Part) -> bool:
    return all(
        max(a, b) < min(a + size, b + width)
        for a, size, b, width in zip(box.offsets, box.sizes, part.offsets, part.sizes)
    )


def _said(part: Part) -> str:
    return f"{list(part.sizes)} at {list(part.offsets)}, locally at {list(part.local)}"


def dims(index: Index) -> list[str]:
    """Tensors whose dims in factor notation cannot be read, or are not their shapes."""
    found = []
    for name, tensor in index.tensors.items():
        try:
            notation.sized(tensor.dims, tensor.shape)
        except CheckpointError as error:
            found.append(f"`{name}` {list(tensor.shape)}: {error}")
    return found


def agree(index: Index, headers: Mapping[str, Header]) -> list[str]:
    """Where headers are not what a sound index says, and the reverse; of files that have none nothing is said."""
    found = []
    for file, header in headers.items():
        wanted = set(index.names(file))
        found += [
            f"{file}: `{name}` is in the index, and not in the file"
            for name in sorted(wanted - header.tensors.keys())
        ]
        found += [
            f"{file}: `{name}` is in the file, and not in the index"
            for name in sorted(header.tensors.keys() - wanted)
        ]
        for name in sorted(wanted & header.tensors.keys()):
            tensor, span = index.tensors[name], header.tensors[name]
            shape = tensor.local_shape(file)
            if (tensor.dtype, shape) != (span.dtype, span.shape):
                found.append(
                    f"{file}: `{name}` is {span.dtype} {list(span.shape)}, "
                    f"and {tensor.dtype} {list(shape)} in the index"
                )
    return found


def equal(source: Index, target: Index, dropped: Iterable[str] = ()) -> list[str]:
    """Where a target has not the same tensors as a source; those that are `dropped` may be missing."""
    missing = source.tensors.keys() - target.tensors.keys() - set(dropped)
    found = [f"`{name}` is not in the target" for name in sorted(missing)]
    for name, tensor in target.tensors.items():
        given = source.tensors.get(name)
        if given is None:
            found.append(f"`{name}` is in the target, and not in the source")
        elif (given.dtype, given.shape) != (tensor.dtype, tensor.shape):
            found.append(
                f"`{name}` is {given.dtype} {list(given.shape)} in the source, "
                f"and {tensor.dtype} {list(tensor.shape)} in the target"
            )
    return found


def whole_bytes(transfer: Transfer) -> list[str]:
    """Tensors with elements of less than a byte that would be cut within one."""
    found = []
    packed = [
        n
        for n, name in enumerate(transfer.names)
        if dtypes.BITS[transfer.source.index.tensors[name].dtype] % 8
    ]
    for task in map(transfer.__getitem__, packed):
        try:
            _ = task.geometry
        except ValueError as error:
            found.append(f"`{task.name}` {task.dtype} {list(task.shape)}: {error}")
    return found
