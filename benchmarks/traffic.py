"""Bytes on the wire, counted at torch's functional collectives, whoever calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from fxpar.runtime.counter import WIRE

#: The functional collectives by what they do, in all their forms.
_FORMS = {
    "all_reduce": ("all_reduce", "all_reduce_", "all_reduce_coalesced", "all_reduce_coalesced_"),
    "all_gather": (
        "all_gather_into_tensor",
        "all_gather_into_tensor_out",
        "all_gather_into_tensor_coalesced",
    ),
    "reduce_scatter": (
        "reduce_scatter_tensor",
        "reduce_scatter_tensor_out",
        "reduce_scatter_tensor_coalesced",
    ),
    "all_to_all": ("all_to_all_single",),
}


class Traffic:
    """Calls and bytes of one rank, by kind of collective (ring algorithms, as in `fxpar.runtime.counter`)."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = dict.fromkeys(_FORMS, 0)
        self.bytes: dict[str, float] = dict.fromkeys(_FORMS, 0.0)

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.bytes.values())

    def add(self, kind: str, tensor: torch.Tensor, ranks: int) -> None:
        """Count one collective; `tensor` is what it was given."""
        size = tensor.numel() * tensor.element_size() * (ranks if kind == "all_gather" else 1)
        self.calls[kind] += 1
        self.bytes[kind] += WIRE[kind](ranks, size)

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in self.calls.items() if count)


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count every functional collective inside, of any group; all groups must be of all ranks."""
    traffic, namespace = Traffic(), torch.ops._c10d_functional
    forms = {name: kind for kind, names in _FORMS.items() for name in names}
    before = {name: getattr(namespace, name) for name in forms}

    def wrap(kind: str, call: Any) -> Any:
        def counting(tensors: Any, *arguments: Any, **options: Any) -> Any:
            for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
                traffic.add(kind, tensor, dist.get_world_size())
            return call(tensors, *arguments, **options)

        return counting

    for name, kind in forms.items():
        setattr(namespace, name, wrap(kind, before[name]))
    try:
        yield traffic
    finally:
        for name, call in before.items():
            setattr(namespace, name, call)
