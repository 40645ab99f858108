"""What one rank sends: calls and bytes on the wire, by kind of collective, kind of group and phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import is_fake

#: Bytes that one rank sends, of n ranks and the size of the whole tensor in bytes (ring algorithms; Thakur,
#: Rabenseifner and Gropp 2005). Whole means: what is summed, what is gathered, what is scattered.
WIRE: dict[str, Callable[[int, int], float]] = {
    "all_reduce": lambda ranks, size: 2 * (ranks - 1) * size / ranks,
    "all_gather": lambda ranks, size: (ranks - 1) * size / ranks,
    "reduce_scatter": lambda ranks, size: (ranks - 1) * size / ranks,
    "all_to_all": lambda ranks, size: (ranks - 1) * size / ranks,
    "send": lambda _, size: float(size),
}


@dataclass(frozen=True, order=True)
class Traffic:
    """What is counted together: a kind of collective, a kind of group (`tp`, `dp+cp`) and a phase."""

    collective: str
    group: str
    phase: str


@dataclass
class Tally:
    """How often, and how many bytes this rank put on the wire."""

    calls: int = 0
    bytes: float = 0.0


class Counter:
    """The traffic of one rank.

    The phase is `backward` while autograd runs, what the activation checkpoints compute again included, and `forward`
    otherwise, unless `phase` names another one. Groups of one rank send nothing and are not counted; neither is what
    runs inside a compiled graph, where the compiler has replaced the operations.
    """

    def __init__(self) -> None:
        self.tallies: dict[Traffic, Tally] = {}
        self._phase: str | None = None

    def record(self, collective: str, group: str, whole: torch.Tensor, ranks: int) -> None:
        """Count one collective over `ranks` ranks, where `whole` has the size of the whole tensor."""
        self.add(collective, group, whole, WIRE[collective](ranks, whole.numel() * whole.element_size()))

    def record_gather(self, group: str, part: torch.Tensor, ranks: int) -> None:
        """Count one all-gather, given this rank's part."""
        size = part.numel() * part.element_size() * ranks
        self.add("all_gather", group, part, WIRE["all_gather"](ranks, size))

    def add(self, collective: str, group: str, tensor: torch.Tensor, size: float) -> None:
        """Count one collective of `size` bytes on the wire; a fake tensor is only traced, and not counted."""
        if is_fake(tensor):
            return
        tally = self.tallies.setdefault(Traffic(collective, group, self._phase or _autograd_phase()), Tally())
        tally.calls += 1
        tally.bytes += size

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count everything inside under this phase."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def calls(
        self, collective: str | None = None, *, group: str | None = None, phase: str | None = None
    ) -> int:
        """The number of calls, of all or of one kind of collective, group or phase."""
        return sum(tally.calls for tally in self._chosen(collective, group, phase))

    def bytes(
        self, collective: str | None = None, *, group: str | None = None, phase: str | None = None
    ) -> float:
        """The bytes on the wire, of all or of one kind of collective, group or phase."""
        return sum(tally.bytes for tally in self._chosen(collective, group, phase))

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.tallies.clear()

    def _chosen(self, collective: str | None, group: str | None, phase: str | None) -> Iterator[Tally]:
        for traffic, tally in self.tallies.items():
            wanted = ((collective, traffic.collective), (group, traffic.group), (phase, traffic.phase))
            if all(want is None or want == have for want, have in wanted):
                yield tally


def _autograd_phase() -> str:
    return "forward" if torch._C._current_graph_task_id() == -1 else "backward"
