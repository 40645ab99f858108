"""Pictures of stages: what two tp ranks run side by side, and where they meet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from colours import SUMMAND, WHOLE, ink_on, shade
from torch import fx

from fxpar.passes import Partition
from fxpar.report.svg import INK, PAPER, Drawing

RANKS = (0, 1)
STEP, WIDTH, LANE, GAP = 62, 58, 34, 6
#: What is drawn, by the name of the op.
COMPUTED = {
    "aten.linear": "linear",
    "aten.layer_norm": "norm",
    "aten.scaled_dot_product_attention": "attention",
    "aten.gelu": "gelu",
    "fxpar.embedding": "embedding",
    "fxpar.cross_entropy": "loss",
}
SENT = {
    "fxpar.all_gather": "all gather",
    "fxpar.reduce_scatter": "reduce scatter",
    "fxpar.all_reduce": "all reduce",
}
_SHARD = re.compile(r"Shard\(\d+, (\w+)\) over tp")


def stages(partition: Partition) -> Drawing:
    """Every stage as a row of two lanes, one below the other."""
    rows = [_shown(stage.graph.nodes) for stage in partition.stages]
    picture = Drawing(96 + STEP * max(map(len, rows)), 36 + 158 * len(rows))
    for number, nodes in enumerate(rows):
        top = 60 + 158 * number
        picture.words(70, top - 26, f"stage {number}", anchor="start", size=14, bold=True)
        end = strip(picture, 70, top, nodes)
        if number + 1 < len(rows):
            _send(picture, end, top, 70, top + 158)
    _legend(picture, 12, picture.height - 14)
    return picture


def sequence(whole: Partition, split: Partition) -> Drawing:
    """One block with `sequence: cp` and with `sequence: [cp, tp]`."""
    rows = [_shown(partition.sharded.graph.nodes, "blocks.0") for partition in (whole, split)]
    picture = Drawing(920, 36 + 150 * len(rows))
    for number, (title, nodes) in enumerate(zip(("sequence: cp", 'sequence: [cp, "tp?"]'), rows)):
        top = 60 + 150 * number
        picture.words(70, top - 26, title, anchor="start", size=13, bold=True, code=True)
        strip(picture, 70, top, nodes)
    _legend(picture, 12, picture.height - 14)
    return picture


def strip(picture: Drawing, x: float, top: float, nodes: Sequence[fx.Node]) -> float:
    """Draw ops from left to right in the lanes of both ranks; return where the last one ends."""
    for rank in RANKS:
        picture.words(12, top + rank * (LANE + GAP) + 21, f"tp {rank}", anchor="start", size=12, code=True)
    for node in nodes:
        op = _op(node)
        module = str(node.meta.get("module") or "").rpartition(".")[2]
        if op in SENT:
            _collective(picture, x, top, SENT[op].split())
        else:
            picture.words(x + WIDTH / 2, top - 6, module, size=8.5, code=True)
            for rank in RANKS:
                _work(picture, x, top + rank * (LANE + GAP), node, rank)
        x += STEP
    return x - STEP + WIDTH


def _shown(nodes: Iterable[fx.Node], module: str = "") -> list[fx.Node]:
    return [
        node
        for node in nodes
        if (_op(node) in COMPUTED or _op(node) in SENT)
        and str(node.meta.get("module") or "").startswith(module)
    ]


def _op(node: fx.Node) -> str:
    return str(node.target).rpartition(".")[0] if node.op == "call_function" else ""


def _work(picture: Drawing, x: float, y: float, node: fx.Node, rank: int) -> None:
    """One op on one rank: what it is, the sizes of what it makes there, and the placement as colour."""
    placement = str(node.meta.get("placement") or "")
    found = _SHARD.search(placement)
    axis = found[1] if found else ""
    fill = SUMMAND if "Partial over tp" in placement else WHOLE
    picture.rect(x, y, WIDTH, LANE, shade(axis, rank) if axis else fill)
    ink = ink_on(axis, rank) if axis else INK
    picture.words(x + WIDTH / 2, y + 14, COMPUTED[_op(node)], size=10, fill=ink)
    sizes = [str(size) for size in node.meta["val"].shape[1:]]
    picture.words(x + WIDTH / 2, y + 27, "x".join(sizes), size=9, fill=ink, code=True)


def _collective(picture: Drawing, x: float, top: float, lines: Sequence[str]) -> None:
    height = 2 * LANE + GAP
    picture.rect(x + 5, top, WIDTH - 10, height, INK)
    for number, text in enumerate(lines):
        picture.words(x + WIDTH / 2, top + height / 2 - 2 + 13 * number, text, size=10, fill=PAPER)


def _send(picture: Drawing, x: float, top: float, to_x: float, to_top: float) -> None:
    """The way to the next stage: each rank sends what it has to its own counterpart."""
    middle, turn = top + LANE + GAP / 2, top + 2 * LANE + GAP + 16
    points = ((x, middle), (x + 14, middle), (x + 14, turn), (to_x - 14, turn))
    picture.line(*points, (to_x - 14, to_top + LANE), (to_x - 1, to_top + LANE), arrow=True)
    picture.words((x + to_x) / 2, turn - 5, "sent to the next stage: each tp rank its own slice", size=11)


def _legend(picture: Drawing, x: float, y: float) -> None:
    for axis in ("sequence", "heads", "ffn", "vocab"):
        for rank in RANKS:
            picture.rect(x + 11 * rank, y - 9, 11, 11, shade(axis, rank))
        picture.words(x + 27, y, f"split along {axis}", anchor="start", size=11)
        x += 50 + 6.6 * len(f"split along {axis}")
    for fill, text in ((SUMMAND, "to be summed"), (WHOLE, "the same on both")):
        picture.rect(x, y - 9, 11, 11, fill)
        picture.words(x + 16, y, text, anchor="start", size=11)
        x += 116
