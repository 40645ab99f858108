"""Pictures of parameters: which rank holds which block of a matrix, as a partition says."""

from __future__ import annotations

from collections.abc import Sequence

from colours import WHOLE, shade

from fxpar.passes import Partition
from fxpar.report.svg import Drawing
from fxpar.shard.placement import Shard
from fxpar.shard.sharded import Laid

RANKS = (0, 1)
SCALE = 0.5


def axis_of(partition: Partition, laid: Laid) -> str:
    """The axis along which tp splits a tensor; empty where it does not."""
    state = laid.held.get("tp")
    return (partition.sharded.naming.axis(state.factor) or "") if isinstance(state, Shard) else ""


def matrix(picture: Drawing, x: float, y: float, partition: Partition, name: str, scale: float) -> float:
    """Draw a parameter to scale, in the colours of the ranks' blocks; return its height."""
    laid = partition.sharded.tensors[name]
    rows, columns = (*laid.shape, 4)[:2]
    axis = axis_of(partition, laid)
    picture.rect(x, y, columns * scale, rows * scale, WHOLE)
    for rank in RANKS if axis else ():
        for box in laid.boxes({"tp": rank}):
            top, left = (*box.offset, 0)[:2]
            height, width = (*box.sizes, 4)[:2]
            place = (x + left * scale, y + top * scale, width * scale, height * scale)
            picture.rect(*place, shade(axis, rank))
    return rows * scale


def axes(partition: Partition) -> Drawing:
    """The table of splits, and what it makes of the parameters of a block."""
    picture = Drawing(960, 366)
    picture.words(20, 30, "The table of splits", anchor="start", size=14, bold=True)
    picture.words(
        300, 30, "What it makes of an embedding and a block, at tp = 2", anchor="start", size=14, bold=True
    )
    for number, row in enumerate(partition.sharded.table.values()):
        over = list(row.words.values())
        _row(picture, 20, 62 + 26 * number, row.axis, over)
    names = ("tokens", "blocks.0.attention.qkv", "blocks.0.attention.proj", "blocks.0.feed_forward.up")
    x = 300.0
    for module in (*names, "blocks.0.feed_forward.proj", "blocks.0.norm_1"):
        x += _labelled(picture, x, 52, partition, module)
    _legend(picture, 20, 230)
    return picture


def _row(picture: Drawing, x: float, y: float, axis: str, over: Sequence[str]) -> None:
    for rank in RANKS:
        fill = shade(axis, rank) if {"tp", "tp?", "tp~"} & {*over} else WHOLE
        picture.rect(x + 12 * rank, y - 10, 12, 12, fill)
    dims = over[0] if len(over) == 1 else f"[{', '.join(over)}]"
    picture.words(x + 34, y, f"{axis}: {dims}", anchor="start", size=13, code=True)


def _labelled(picture: Drawing, x: float, y: float, partition: Partition, module: str) -> float:
    """Draw the weight of a module with its name and what it is split along; return the width that is taken."""
    name = f"{module}.weight"
    laid = partition.sharded.tensors[name]
    bottom = y + matrix(picture, x, y, partition, name, SCALE)
    first, *rest = module.removeprefix("blocks.0.").split(".")
    axis = axis_of(partition, laid)
    for line, text in enumerate(
        (f"{first}{'.' if rest else ''}", *rest, f"split: {axis}" if axis else "whole")
    ):
        picture.words(x, bottom + 14 + 13 * line, text, anchor="start", size=10.5, code=True)
    return max((*laid.shape, 4)[1] * SCALE, 88) + 16


def _legend(picture: Drawing, x: float, y: float) -> None:
    for line, text in enumerate(("dark: rank 0 of tp", "light: rank 1 of tp", "grey: the same on both")):
        picture.words(x, y + 18 * line, text, anchor="start", size=12)


def fused(partition: Partition) -> Drawing:
    """One weight that holds queries, keys and values: cut in halves, cut by heads, and what each rank holds."""
    name, scale, top = "blocks.0.attention.qkv.weight", 1.5, 56
    laid = partition.sharded.tensors[name]
    rows, columns = laid.shape
    width, height = columns * scale, rows * scale
    picture = Drawing(860, height + 100)
    _title(picture, 60, top, "cut in the middle", "wrong: all of q with half of k")
    for rank in RANKS:
        picture.rect(60, top + rank * height / 2, width, height / 2, shade("heads", rank))
    _title(picture, 300, top, "cut by heads", "half of the heads of each")
    picture.words(300, top + height + 22, laid.words[0], anchor="start", size=10.5, code=True)
    matrix(picture, 300, top, partition, name, scale)
    for x in (60, 300):
        _segments(picture, x, top, width, height)
    for rank in RANKS:
        x = 560 + 150 * rank
        _title(picture, x, top, f"rank {rank} of tp", f"{list(laid.local_shape)}")
        for box in laid.boxes({"tp": rank}):
            place = (x, top + 30 + box.local[0] * scale)
            picture.rect(*place, width, box.sizes[0] * scale, shade("heads", rank))
            middle = top + (box.offset[0] + box.sizes[0] / 2) * scale
            if rank == 0:
                picture.line(
                    (300 + width + 2, middle), (x - 4, place[1] + box.sizes[0] * scale / 2), arrow=True
                )
    return picture


def _title(picture: Drawing, x: float, top: float, title: str, below: str) -> None:
    picture.words(x, top - 28, title, anchor="start", size=13, bold=True)
    picture.words(x, top - 12, below, anchor="start", size=10.5, code=True)


def _segments(picture: Drawing, x: float, top: float, width: float, height: float) -> None:
    for number, letter in enumerate("qkv"):
        y = top + number * height / 3
        picture.words(x - 16, y + height / 6, letter, size=14, bold=True)
        picture.line((x - 8, y), (x + width + 8, y), dashed=True)
    picture.line((x - 8, top + height), (x + width + 8, top + height), dashed=True)
