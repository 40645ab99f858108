"""Errors that all ranks raise together: nobody goes on, and nobody waits, where one could not do its part.

rank 0   writes its file  --+--  raises "rank 2: disk full"
rank 2   disk full        --+--  raises its own error
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fxpar.errors import RankError
from fxpar.runtime.groups import Groups, find
from fxpar.runtime.rank import Rank


@contextmanager
def agreed(rank: Rank) -> Iterator[None]:
    """Wait at the end of the block until all ranks are there; if it raised on any of them, raise on all.

    A rank raises its own error, the others RankError with that of the first one.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    try:
        said = exchange(rank, _text(error) if error else "")
    except Exception:
        if error is not None:  # It is the cause, and the others are gone.
            raise error from None
        raise
    if error is not None:
        raise error
    for number, text in enumerate(said):
        if text:
            raise RankError(f"rank {number} has failed: {text}")


def exchange(rank: Rank, text: str) -> list[str]:
    """What each rank gave, on all of them."""
    groups: Groups = rank.groups
    world = find(groups.world)
    if world.size == 1:
        return [text]
    device = next((t.device for t in rank.parameters()), torch.device("cpu"))
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    longest = int(world.all_reduce(torch.tensor(len(data), device=device), "max"))
    if not longest:
        return [""] * world.size
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    return [bytes(each.tolist()).rstrip(b"\0").decode() for each in world.all_gather(padded)]


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
