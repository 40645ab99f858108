"""Checkpoints in Hugging Face's layout: every tensor whole, in one file or in several of a bounded size.

    model.safetensors                        or      model-00001-of-00003.safetensors, ...

Names are those of the model's own parameters, which `from_pretrained` reads. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.index import SINGLE, Index, Indexed, Part
from fxpar.errors import CheckpointError

#: Bytes of a file at most, as transformers writes them.
MOST = 50_000_000_000


def huggingface(index: Index, most: int = MOST) -> Index:
    """The index of the same tensors, each whole in one file; state of an optimizer has no place in this layout.

    Files have at most `most` bytes of tensors, or one tensor that is larger.
    """
    groups: list[list[str]] = [[]]
    room = most
    for name, tensor in index.tensors.items():
        if tensor.of:
            continue
        size = dtypes.size(tensor.dtype, tensor.shape)
        if groups[-1] and size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    count = len(groups)
    names = (
        [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else [SINGLE]
    )
    tensors = {
        name: _whole(index.tensors[name], file) for file, group in zip(names, groups) for name in group
    }
    return replace(index, mesh={}, ranks=tuple(names), tensors=tensors)


def _whole(tensor: Indexed, file: str) -> Indexed:
    zeros = (0,) * len(tensor.shape)
    return replace(tensor, placement={}, files={file: (Part(zeros, tensor.shape, zeros),)}, crc32={})


def like(index: Index, layout: Index, origin: str) -> Index:
    """An index of tensors of which nothing but names and shapes is known, with what another one says of their dims.

    Tensors that only the first has (under another name of a tied one) are known by their ties. Raises CheckpointError
    that lists every name and shape that does not fit; `origin` is what the other index is called.
    """
    names = {name: name for name in layout.tensors} | dict(layout.ties)
    found = {names[name]: name for name in index.tensors if name in names}
    wrong = [f"`{name}` is not in {origin}" for name in index.tensors if name not in names]
    wrong += [f"`{name}` of {origin} is missing" for name in layout.tensors if name not in found]
    wrong += [
        f"`{mine}` is {list(index.tensors[mine].shape)}, in {origin} {list(layout.tensors[name].shape)}"
        for name, mine in found.items()
        if name in layout.tensors and index.tensors[mine].shape != layout.tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit {origin}", details=wrong)
    tensors: Mapping[str, Indexed] = {
        mine: replace(index.tensors[mine], dims=layout.tensors[name].dims, at=layout.tensors[name].at)
        for name, mine in found.items()
    }
    return replace(
        index, tensors=tensors, ties=layout.ties, rows=layout.rows, extends=layout.extends, hash=layout.hash
    )
