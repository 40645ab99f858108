"""Point-to-point transport of tensors between ranks, as the pipeline's stages need it."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist

from fxpar.mesh import Mesh, joined
from fxpar.runtime.counter import Counter


class Transport(Protocol):
    """Sends tensors between pairs of ranks. Between one pair they arrive in the order in which they were sent."""

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send a tensor to a rank of the mesh, without waiting until it is received."""

    def recv(self, source: int, like: torch.Tensor | None = None) -> torch.Tensor:
        """Receive the next tensor from a rank of the mesh.

        `like` has its shape and dtype (a meta or fake tensor will do). Only the simulator can do without it.
        """

    def flush(self) -> None:
        """Wait until all that was sent has left this rank."""


class ProcessTransport:
    """Transport between processes, over one process group that spans the mesh."""

    def __init__(
        self, mesh: Mesh, rank: int, group: dist.ProcessGroup | None, device: torch.device, counter: Counter
    ) -> None:
        self._mesh, self._rank, self._group = mesh, rank, group
        self._device, self._counter = device, counter
        self._pending: list[tuple[dist.Work, torch.Tensor]] = []

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Start sending; the tensor is kept until it has left."""
        tensor = tensor.detach().contiguous()
        self._counter.record("send", between(self._mesh, self._rank, to), tensor, 2)
        work = dist.isend(tensor, to, group=self._group)
        self._pending = [(other, kept) for other, kept in self._pending if not other.is_completed()]
        if work is not None:
            self._pending.append((work, tensor))

    def recv(self, source: int, like: torch.Tensor | None = None) -> torch.Tensor:
        """Receive into a new tensor of the shape and dtype of `like`; ValueError without it."""
        if like is None:
            raise ValueError(
                "receiving between processes needs `like`, a tensor with the shape and dtype to come"
            )
        tensor = torch.empty(like.shape, dtype=like.dtype, device=self._device)
        dist.recv(tensor, source, group=self._group)
        return tensor

    def flush(self) -> None:
        """Wait until all that was sent has left this rank."""
        for work, _ in self._pending:
            work.wait()
        self._pending.clear()


def between(mesh: Mesh, rank: int, other: int) -> str:
    """The mesh dims along which two ranks differ, joined as in the name of a group."""
    here, there = mesh.coordinate(rank), mesh.coordinate(other)
    return joined([dim for dim in mesh.dims if here[dim] != there[dim]])
