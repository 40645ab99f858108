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
from fxpar.runtime.groups import Groups

__all__ = [
    "Groups",
    "all_gather",
    "all_reduce",
    "all_reduce_both",
    "all_to_all",
    "keep_on_first",
    "reduce_scatter",
    "slice",
    "sum_gradient",
]
