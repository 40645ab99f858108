"""What comments say: shapes and dims of values, the module that made them, the rule behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from fxpar.emit.sizes import LocalSizes

#: Writes one size.
Written: TypeAlias = Callable[[int], str]
#: How many spans of numbers are listed at most.
SPANS = 6


def shape(value: Any, usual: torch.dtype | None, sizes: Any = None, write: Written = str) -> str:
    """Return `[2, 128] int64`; the dtype is left out where it is the usual one. Values of other kinds give nothing.

    `sizes` are shapes to be said in place of the value's own, `write` writes them.
    """
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(write(size) for size in (value.shape if sizes is None else sizes))
        return f"[{sizes}]" if value.dtype == usual else f"[{sizes}] {short(value.dtype)}"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, list | tuple):
        known = sizes or [None] * len(value)
        return ", ".join(filter(None, (shape(item, usual, s, write) for item, s in zip(value, known))))
    return ""


def value(node: fx.Node, usual: torch.dtype | None, sizes: LocalSizes | None = None) -> str:
    """Return the comment behind a value: shape, dims, and for an op that fxpar put in, its placement and rule."""
    write = sizes.text if sizes is not None else str
    words = [shape(node.meta.get("val"), usual, node.meta.get("sizes"), write), dims(node.meta.get("dims"))]
    if getattr(node.target, "namespace", "") == "fxpar":
        words += [node.meta.get("placement", ""), node.meta.get("rule", "")]
    return " ".join(filter(None, words))


def tensor(node: fx.Node) -> str:
    """Return the comment behind a parameter or buffer: dims, placement, rule."""
    words = [dims(node.meta.get("dims")), node.meta.get("placement", ""), node.meta.get("rule", "")]
    return "; ".join(filter(None, words))


def dims(found: Any) -> str:
    """Return dims in factor notation: `(b, s, (heads d))`."""
    if not found:
        return ""
    if all(isinstance(dim, str) for dim in found):
        return f"({', '.join(found)})"
    return ", ".join(filter(None, map(dims, found)))


def origin(node: fx.Node, root: str, layer: str = "") -> str:
    """Return the module that made a value, and where: `model.layers.*.mlp (modeling_llama.py:93)`.

    `root` stands for the model itself, whose path is empty. In a layer, whose text stands for others too, the
    layer's number is a star.
    """
    path = node.meta.get("module", "")
    if layer and (path == layer or path.startswith(f"{layer}.")):
        path = f"{layer.rpartition('.')[0]}.*{path.removeprefix(layer)}"
    source = node.meta.get("source", "")
    return f"{path or root} ({source})" if source else path or root


def numbers(found: Sequence[int]) -> str:
    """Return ascending numbers in short: `0 to 3, 7`."""
    spans: list[list[int]] = []
    for number in found:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    texts = [f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return ", ".join(texts if len(texts) <= SPANS else [*texts[: SPANS - 2], "...", texts[-1]])


def short(dtype: torch.dtype) -> str:
    """Return a dtype without `torch.`."""
    return re.sub(r"^torch\.", "", str(dtype))
