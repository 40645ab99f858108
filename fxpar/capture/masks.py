"""What an attention mask that depends on no input amounts to: nothing masked, or causal. Found by value."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import torch
from torch import fx

from fxpar.capture.constants import Box, Constants
from fxpar.capture.node import aten, is_op
from fxpar.capture.program import Program

#: Masks are looked at in pieces of about this many elements; those larger than `LIMIT` are not looked at.
PIECE, LIMIT = 2**24, 2**33


def mark_masks(program: Program) -> None:
    """Set `meta["mask"]` to `full` or `causal` on every attention op whose mask amounts to that.

    A mask that depends on an input, whose buffers have no value, or that is anything else leaves it unset.
    """
    constants = Constants(program)
    found: dict[int, str | None] = {}
    for node in program.graph.nodes:
        if not is_op(node, aten.scaled_dot_product_attention):
            continue
        mask = mask_of(node)
        if mask is None:
            kind = _unmasked(node)
        elif mask in constants:
            key = constants.key(mask)
            if key not in found:
                found[key] = classify(constants, mask, _lengths(node))
            kind = found[key]
        else:
            kind = None
        if kind is not None:
            node.meta["mask"] = kind


def classify(constants: Constants, mask: fx.Node, lengths: tuple[int, int]) -> str | None:
    """`full`, `causal` or None for a constant mask over `lengths` = (queries, keys).

    A bool mask is True where attention is allowed; an additive one is 0 there, and -inf or the least number of its
    dtype where it is not.
    """
    shape = mask.meta["val"].shape
    if prod(shape) > LIMIT or len(shape) < 2:
        return None
    square = lengths[0] == lengths[1] and tuple(shape[-2:]) == lengths
    kinds = {"full", "causal"} if square else {"full"}
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    try:
        for box in _pieces(shape):
            sources = constants.sources(mask, box)
            first = seen.setdefault(box[-2], sources)
            if first is not sources and _equal(first, sources):
                continue  # the same rows as those of another sample
            kinds &= _kinds(constants.block(mask, box), box)
            if not kinds:
                return None
    except KeyError:
        return None
    return "full" if "full" in kinds else "causal"


def _equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _kinds(part: torch.Tensor, box: Box) -> set[str]:
    allowed = _allowed(part)
    if allowed is None:
        return set()
    rows = torch.arange(*box[-2])[:, None]
    columns = torch.arange(*box[-1])[None, :]
    kinds = {"full"} if bool(allowed.all()) else set()
    return kinds | ({"causal"} if bool((allowed == (columns <= rows)).all()) else set())


def _allowed(part: torch.Tensor) -> torch.Tensor | None:
    if part.dtype == torch.bool:
        return part
    if not part.is_floating_point():
        return None
    allowed = part == 0
    masked = part <= torch.finfo(part.dtype).min
    return allowed if bool((allowed | masked).all()) else None


def _pieces(shape: torch.Size) -> Iterator[Box]:
    """Boxes that tile the mask: one leading index and some rows each."""
    rows = max(1, PIECE // max(1, shape[-1]))
    for lead in product(*(range(size) for size in shape[:-2])):
        for start in range(0, shape[-2], rows):
            box = [(index, index + 1) for index in lead]
            yield [*box, (start, min(start + rows, shape[-2])), (0, shape[-1])]


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask that an attention op is given, if any."""
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return mask if isinstance(mask, fx.Node) else None


def _unmasked(node: fx.Node) -> str | None:
    causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    queries, keys = _lengths(node)
    if not causal:
        return "full"
    return "causal" if queries == keys else None


def _lengths(node: fx.Node) -> tuple[int, int]:
    query, key = node.args[0], node.args[1]
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    return int(query.meta["val"].shape[-2]), int(key.meta["val"].shape[-2])
