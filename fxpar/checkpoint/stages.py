"""Which pipeline ranks hold each tensor of a checkpoint, when its layers are dealt out anew. No torch, no model.

elements of layers   8 | 2 2 2 2 | 8      over 3 stages:   8 | 2 2 2 2 | 8
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod

from fxpar.checkpoint.index import Index
from fxpar.errors import CheckpointError
from fxpar.schedule import places


def stages(
    index: Index, ranks: int, virtual: int = 1, schedule: str = "1f1b"
) -> Mapping[str, tuple[int, ...]]:
    """The pipeline ranks of each tensor: those of the stages that have a layer which uses it.

    The layers go in order to `ranks * virtual` stages, so that the most elements of a stage are as few as can be, and
    the stages to ranks as the schedule has it. Tensors of an optimizer count with their parameters. Raises
    CheckpointError for more stages than layers.
    """
    weights: dict[int, int] = {}
    for tensor in index.tensors.values():
        for layer in tensor.at[:1]:
            weights[layer] = weights.get(layer, 0) + prod(tensor.shape)
        for layer in tensor.at[1:]:
            weights.setdefault(layer, 0)
    layers, count = sorted(weights), ranks * virtual
    if count > (most := max(len(layers), 1)):
        raise CheckpointError(
            f"{count} stages need as many layers, the checkpoint has {len(layers)}",
            details=["pp may be 1" if most == 1 else f"pp times vpp may be at most {most}"],
        )
    ends = cut([weights[layer] for layer in layers], count)
    stage = {layer: next(s for s, end in enumerate(ends) if n < end) for n, layer in enumerate(layers)}
    on = places(schedule, ranks, virtual)
    return {
        name: tuple(sorted({on[stage[layer]] for layer in tensor.at} or {0}))
        for name, tensor in index.tensors.items()
    }


def cut(weights: Sequence[int], parts: int) -> list[int]:
    """The ends of `parts` runs of the weights, none empty, whose largest sum is as small as can be; the first of such.

    By dynamic programming over prefixes: what a longer one needs is never less, and what is left of a run behind it
    never more, so that the best place is where they meet. O(parts * n * log n), exact.
    """
    sums, n = [0, *accumulate(weights)], len(weights)
    best: list[list[tuple[int, int]]] = [[(sums[end], 0) for end in range(n + 1)]]
    for part in range(1, parts):
        before = [largest for largest, _ in best[-1]]
        row = [(0, 0)] * (n + 1)
        for end in range(part + 1, n + 1):
            places = range(part, end)
            meet = part + bisect_left(places, True, key=lambda b: before[b] >= sums[end] - sums[b])
            least = min(max(before[b], sums[end] - sums[b]) for b in (meet - 1, meet) if b in places)
            row[end] = least, bisect_left(sums, sums[end] - least, part, end)
        best.append(row)
    ends = [n]
    for row in reversed(best[1:]):
        ends.append(row[ends[-1]][1])
    return ends[::-1] if n else [0] * parts
