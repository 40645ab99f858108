"""Indices into a dimension of which each rank of a group holds an equal contiguous shard, the last ones padded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxpar.runtime.groups import find


@dataclass(frozen=True)
class Shard:
    """This rank's shard: where it starts, its length and that of the whole.

    Where the whole is shorter than all shards together, the last ones end in padding.
    """

    start: int
    length: int
    whole: int

    @staticmethod
    def of(length: int, group: str | None, whole: int | None = None) -> Shard:
        """The shard of this rank, of its length; without a group it is the whole. `whole` is given if it is padded."""
        if group is None:
            return Shard(0, length, length)
        members = find(group)
        return Shard(members.index * length, length, members.size * length if whole is None else whole)

    @property
    def real(self) -> int:
        """How much of this shard is not padding."""
        return max(0, min(self.length, self.whole - self.start))

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each index lies in this shard, and its position there (zero for the others)."""
        local = indices - self.start
        inside = (local >= 0) & (local < self.length)
        return inside, local.where(inside, 0)

    def check(self, indices: Tensor, wanted: Tensor | bool, what: str) -> None:
        """Raise RuntimeError if a wanted index is outside of the whole; an accelerator fails when it gets there."""
        valid = (indices >= 0) & (indices < self.whole)
        if wanted is not True:
            valid = valid | ~wanted
        torch._assert_async(valid.all(), f"{what} is not within the {self.whole} rows or classes")
