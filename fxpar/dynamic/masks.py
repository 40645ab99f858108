"""Which of the masks that were recognised at some sizes are what they seem at all sizes.

A mask with a window of 4096 is causal in an example of 128. Its numbers tell: a mask that compares positions with each
other and with numbers up to n shows all that it does by the length 2 n + 2. Other masks are made when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxpar.capture.masks import mask_of
from fxpar.capture.node import aten, is_op
from fxpar.capture.program import DynamicAxis, Program

#: Larger numbers are infinities: the end of a slice, the least number of a dtype.
INFINITE = 2**31
#: Ops of which a mask may be made that is trusted: they compare positions, shift them, join masks, change shapes.
_PLAIN = (
    *(aten.arange, aten.full, aten.ones, aten.zeros, aten.new_ones, aten.new_zeros, aten.full_like),
    *(aten.ones_like, aten.zeros_like, aten.new_full, aten.scalar_tensor, aten.tril, aten.triu),
    *(aten.le, aten.lt, aten.ge, aten.gt, aten.eq, aten.ne, aten.add, aten.sub, aten.rsub),
    *(aten.bitwise_and, aten.bitwise_or, aten.bitwise_not, aten.logical_and, aten.logical_or),
    *(aten.logical_not, aten.__and__, aten.__or__, aten.where, aten.masked_fill, aten.to, aten.detach),
    *(aten.expand, aten.unsqueeze, aten.squeeze, aten.view, aten.reshape, aten.slice, aten.select),
    *(aten.clone, aten.contiguous, aten.transpose, aten.permute, aten.index, aten.diff, aten.cumsum),
)


def needed(program: Program, axes: Sequence[DynamicAxis]) -> dict[str, int]:
    """The length, by axis, at which the recognised masks show all that they do."""
    least: dict[str, int] = {}
    for node in _attentions(program):
        mask = mask_of(node)
        if mask is None or "mask" not in node.meta:
            continue
        enough = 2 * max(_numbers(mask), default=0) + 2
        lengths = set(mask.meta["val"].shape[-2:])
        for axis in axes:
            if axis.size in lengths:
                least[axis.name] = max(enough, least.get(axis.name, 0))
    return least


def settle(program: Program, others: Sequence[Program], axes: Sequence[DynamicAxis]) -> None:
    """Forget every recognised mask that is not the same at all sizes, or may be another one at still other sizes."""
    programs = (program, *others)
    for nodes in zip(*map(_attentions, programs)):
        same = len({node.meta.get("mask") for node in nodes}) == 1
        mask = mask_of(nodes[0])
        if not same or (mask is not None and not _shown(mask, nodes, axes)):
            for node in nodes:
                node.meta.pop("mask", None)


def _shown(mask: fx.Node, nodes: Sequence[fx.Node], axes: Sequence[DynamicAxis]) -> bool:
    """Whether the sizes at hand show all that a mask does."""
    if not all(_is_plain(node) for node in _made_of(mask)):
        return False
    masks = [mask_of(node) for node in nodes]
    shapes = [each.meta["val"].shape[-2:] for each in masks if each is not None]
    enough = 2 * max(_numbers(mask), default=0) + 2
    for dim, size in enumerate(shapes[0]):
        largest = max(int(shape[dim]) for shape in shapes)
        most = min((axis.most for axis in axes if axis.most and axis.size == size), default=None)
        fixed = len({int(shape[dim]) for shape in shapes}) == 1
        if not fixed and largest < enough and largest != most:
            return False
    return True


def _attentions(program: Program) -> list[fx.Node]:
    return [node for node in program.graph.nodes if is_op(node, aten.scaled_dot_product_attention)]


def _made_of(mask: fx.Node) -> list[fx.Node]:
    found, waiting = dict.fromkeys([mask]), [mask]
    while waiting:
        fresh = [source for source in waiting.pop().all_input_nodes if source not in found]
        found |= dict.fromkeys(fresh)
        waiting += fresh
    return list(found)


def _is_plain(node: fx.Node) -> bool:
    """Whether an op compares or shapes; of buffers and constants only single numbers are known for all sizes."""
    if node.op == "placeholder":
        return bool(node.meta["kind"] in ("buffer", "constant") and node.meta["val"].numel() == 1)
    return is_op(node, *_PLAIN)


def _numbers(mask: fx.Node) -> Iterator[int]:
    """The size of every number in the making of a mask."""
    for node in _made_of(mask):
        for leaf in pytree.tree_leaves((node.args, node.kwargs)):
            if isinstance(leaf, int | float) and not isinstance(leaf, torch.dtype) and abs(leaf) < INFINITE:
                yield int(abs(leaf))
