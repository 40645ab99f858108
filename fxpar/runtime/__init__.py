"""What emitted modules call: conversions between placements, lowerings of operators, and groups of ranks."""

from fxpar.runtime.conversions import (
    all_gather,
    all_reduce,
    all_reduce_both,
    all_to_all,
    keep_on_first,
    reduce_scatter,
    slice,
    sum_gradient,
)
from fxpar.runtime.embedding import embedding
from fxpar.runtime.groups import Groups
from fxpar.runtime.loss import count_targets, cross_entropy
from fxpar.runtime.random import Randomness, dropout, seeded, seeded_call

__all__ = [
    "Groups",
    "Randomness",
    "all_gather",
    "all_reduce",
    "all_reduce_both",
    "all_to_all",
    "count_targets",
    "cross_entropy",
    "dropout",
    "embedding",
    "keep_on_first",
    "reduce_scatter",
    "seeded",
    "seeded_call",
    "slice",
    "sum_gradient",
]
