"""Checkpoints in Hugging Face's layout: every tensor whole, in one file or in several of a bounded size.

    model.safetensors                        or      model-00001-of-00003.safetensors, ...

Names are those of the model's own parameters, which `from_pretrained` reads. No torch here.
"""

from __future__ import annotations

from dataclasses import replace

from fxpar.checkpoint import dtypes
from fxpar.checkpoint.index import SINGLE, Index, Indexed, Part
from fxpar.checkpoint.stored import refuse

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

    A tied tensor is known under any of its names, or under several. State of an optimizer has the dims of its
    parameter; that of the other index does not matter. Raises CheckpointError that lists every name and shape that does
    not fit; `origin` is what the other index is called.
    """
    known = {name: tensor for name, tensor in layout.tensors.items() if not tensor.of}
    names = {name: name for name in known} | {
        name: first for name, first in layout.ties.items() if first in known
    }
    mine = [name for name, tensor in index.tensors.items() if not tensor.of]
    found = {names[name] for name in mine if name in names}
    wrong = [f"`{name}` is not in {origin}" for name in mine if name not in names]
    wrong += [f"`{name}` of {origin} is missing" for name in known if name not in found]
    wrong += [
        f"`{name}` is {list(index.tensors[name].shape)}, in {origin} {list(known[names[name]].shape)}"
        for name in mine
        if name in names and index.tensors[name].shape != known[names[name]].shape
    ]
    refuse(f"the checkpoint does not fit {origin}", wrong)
    tensors = {
        name: _alike(tensor, known[names[tensor.of or name]])
        for name, tensor in index.tensors.items()
        if (tensor.of or name) in names
    }
    ties = {name: first for name, first in layout.ties.items() if name not in index.tensors}
    return replace(
        index, tensors=tensors, ties=ties, rows=layout.rows, extends=layout.extends, hash=layout.hash
    )


def _alike(tensor: Indexed, known: Indexed) -> Indexed:
    """A tensor with the layers of another one, and with its dims if it has its shape."""
    return replace(tensor, dims=known.dims if tensor.shape == known.shape else tensor.dims, at=known.at)
