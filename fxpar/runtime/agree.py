"""Errors that all ranks raise together: nobody goes on, and nobody waits, where one could not do its part.

rank 0   writes its file  --+--  raises "rank 2: disk full"
rank 2   disk full        --+--  raises its own error
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fxpar.errors import RankError
from fxpar.runtime.groups import Groups, find
from fxpar.runtime.rank import Rank

#: How many elements at each end of a tensor tell it from others.
ENDS = 8


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


def check_alike(rank: Rank, fingerprints: Mapping[str, str]) -> None:
    """Raise RankError, on all ranks, where they were not given the same; it names what differs.

    `fingerprints` tell by a short text each what a rank was given. Every rank has to call it.
    """
    digest = hashlib.sha256(json.dumps([*fingerprints.items()]).encode()).hexdigest()[:16]
    said = exchange(rank, digest)
    other = next((number for number, each in enumerate(said) if each != said[0]), None)
    if other is None:
        return
    first, second = (json.loads(exchange(rank, json.dumps(fingerprints))[number]) for number in (0, other))
    differing = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    shown = ", ".join(f"`{name}`" for name in differing[:3]) or "the order of its tensors"
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise RankError(
        f"ranks were given different models: {shown}{more} of rank {other} is not that of rank 0",
        details=["build the model after the same torch.manual_seed, or load the same weights, on every rank"],
    )


def fingerprint(tensor: torch.Tensor) -> str:
    """A short text that tells tensors apart by dtype, shape and their first and last elements."""
    ends = [tensor, tensor]
    while ends[0].dim() > 1 and tensor.numel():
        ends = [ends[0][0], ends[1][-1]]
    some = torch.cat([ends[0].reshape(-1)[:ENDS], ends[1].reshape(-1)[-ENDS:]]).cpu()
    data = some.contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + data).hexdigest()[:8]


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
