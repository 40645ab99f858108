"""Groups of real processes, over torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from fxpar.errors import RankError
from fxpar.mesh import Mesh, joined
from fxpar.runtime.counter import Counter
from fxpar.runtime.groups import Group, Groups, members, partition
from fxpar.runtime.transport import ProcessTransport

_c10d = torch.ops._c10d_functional


class ProcessGroup(Group):
    """A group of processes. Every exchange is a functional collective, which a compiler can see and overlap."""

    def __init__(
        self, kind: str, ranks: Sequence[int], rank: int, counter: Counter, group: dist.ProcessGroup | None
    ) -> None:
        super().__init__(kind, ranks, rank, counter)
        self.process_group = group
        self._native = group.group_name if group is not None else ""
        ordered = sorted(self.ranks)  # torch's groups are always in the order of the ranks
        self._reorder = ordered != list(self.ranks)
        self._to_native = [self.ranks.index(r) for r in ordered]
        self._from_native = [ordered.index(r) for r in self.ranks]

    def _all_reduce(self, x: torch.Tensor, op: str, /) -> torch.Tensor:
        return _wait(_c10d.all_reduce(x, op, self._native))

    def _all_gather(self, x: torch.Tensor, /) -> torch.Tensor:
        stacked = _wait(_c10d.all_gather_into_tensor(x.unsqueeze(0), self.size, self._native))
        return stacked[self._from_native] if self._reorder else stacked

    def _reduce_scatter(self, stacked: torch.Tensor, /) -> torch.Tensor:
        stacked = stacked[self._to_native] if self._reorder else stacked
        return _wait(_c10d.reduce_scatter_tensor(stacked, "sum", self.size, self._native)).squeeze(0)

    def _all_to_all(self, stacked: torch.Tensor, /) -> torch.Tensor:
        stacked = stacked[self._to_native] if self._reorder else stacked
        ones = [1] * self.size
        received = _wait(_c10d.all_to_all_single(stacked, ones, ones, self._native))
        return received[self._from_native] if self._reorder else received


class _ProcessGroups(Groups):
    """Groups that own process groups."""

    def __init__(self, *args: object, owned: Sequence[dist.ProcessGroup], **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._owned = list(owned)

    def close(self) -> None:
        """Unregister all groups and destroy their process groups; all ranks must call it."""
        super().close()
        for group in self._owned:
            dist.destroy_process_group(group)
        self._owned.clear()


def connect(
    mesh: Mesh, kinds: Iterable[str], *, device: torch.device | str | None = None, timeout: float = 120.0
) -> Groups:
    """Make the process groups of a mesh. Collective: every process calls it with the same arguments.

    The default process group must exist (`torch.distributed.init_process_group`). `kinds` must name all kinds of group
    that will be used; the group of all ranks is added. `device` defaults to this machine's accelerator, or the CPU; its
    backend is the one that torch prefers for it. A collective that takes longer than `timeout` seconds fails.
    Raises RankError where there is no default group or the mesh has another number of ranks.
    """
    _check_world(mesh)
    rank, counter = dist.get_rank(), Counter()
    place = torch.device(device) if device is not None else current_device()
    kinds = list(dict.fromkeys([*kinds, joined(mesh.dims)]))
    made = _new_groups(mesh, kinds, place, timeout)

    def make(kind: str) -> Group:
        ranks = members(mesh, rank, kind)
        return ProcessGroup(kind, ranks, rank, counter, made.get(tuple(sorted(ranks))))

    transport = ProcessTransport(mesh, rank, made.get(tuple(range(mesh.world))), place, counter)
    owned = [group for ranks, group in made.items() if rank in ranks]
    return _ProcessGroups(mesh, rank, make, kinds=kinds, counter=counter, transport=transport, owned=owned)


def current_device() -> torch.device:
    """This process's accelerator, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def _check_world(mesh: Mesh) -> None:
    if not dist.is_initialized():
        raise RankError(
            "there is no process group yet",
            details=["start the ranks with torchrun, and begin with `with fxpar.together():`"],
        )
    if dist.get_world_size() != mesh.world:
        raise RankError(f"the mesh has {mesh.world} ranks, but {dist.get_world_size()} processes run")


def _new_groups(
    mesh: Mesh, kinds: Sequence[str], device: torch.device, timeout: float
) -> dict[tuple[int, ...], dist.ProcessGroup]:
    """One process group for each distinct set of two or more ranks, made in the same order everywhere."""
    backend = dist.get_default_backend_for_device(device)
    wait = timedelta(seconds=timeout)
    every = (tuple(sorted(ranks)) for kind in kinds for ranks in partition(mesh, kind) if len(ranks) > 1)
    return {
        ranks: dist.new_group(list(ranks), timeout=wait, backend=backend) for ranks in dict.fromkeys(every)
    }


def _wait(started: torch.Tensor) -> torch.Tensor:
    done: torch.Tensor = _c10d.wait_tensor(started)
    return done
