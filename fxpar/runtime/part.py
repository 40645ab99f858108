"""Parts of gradients: all of one, or the spans of a dim that several ranks have alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from fxpar.shard.overlap import Overlap, Span


@dataclass(frozen=True)
class Part:
    """What of a parameter's gradient is summed in one call: all of it, or an overlap."""

    parameter: nn.Parameter
    overlap: Overlap | None = None

    def flat(self) -> Tensor:
        """The part in one dimension; zeros for a gradient that is missing."""
        gradient = local(self.parameter.grad)
        if gradient is None:
            gradient = torch.zeros_like(self.parameter)
        pieces = [piece.reshape(-1) for piece in self._pieces(gradient)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def fill(self, values: Tensor) -> None:
        """Put values, in one dimension, in the place of the part; what is missing around it is zero."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        gradient = local(self.parameter.grad)
        assert gradient is not None
        pieces = self._pieces(gradient)
        for piece, own in zip(pieces, values.split_with_sizes([piece.numel() for piece in pieces])):
            piece.copy_(own.view(piece.shape))

    def _pieces(self, gradient: Tensor) -> list[Tensor]:
        """Views of a gradient. Raises RuntimeError for an overlap of one that is itself spread over ranks."""
        if self.overlap is None:
            return [gradient]
        if gradient.shape != self.parameter.shape:
            raise RuntimeError(
                f"a gradient of {list(self.parameter.shape)} is spread over ranks, which have {list(gradient.shape)} "
                "of it: its rows that are to be summed cannot be told"
            )
        return [gradient.narrow(self.overlap.dim, *span) for span in self.overlap.spans]


def local(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or of one that is itself spread over ranks (a DTensor) this rank's part."""
    return tensor.to_local() if tensor is not None and hasattr(tensor, "to_local") else tensor


def without(tensor: Tensor, overlaps: Sequence[Overlap]) -> Iterator[Tensor]:
    """Views of what is left of a tensor without some overlaps."""
    if not overlaps:
        yield tensor
        return
    kept = [_kept(size, [o for o in overlaps if o.dim == dim]) for dim, size in enumerate(tensor.shape)]
    for spans in product(*kept):
        view = tensor
        for dim, span in enumerate(spans):
            view = view.narrow(dim, *span)
        yield view


def _kept(size: int, overlaps: Sequence[Overlap]) -> list[Span]:
    """The spans of a dim that none of the overlaps has."""
    kept, start = [], 0
    for begin, length in sorted(span for overlap in overlaps for span in overlap.spans):
        if begin > start:
            kept.append((start, begin - start))
        start = max(start, begin + length)
    return [*kept, (start, size - start)] if start < size else kept
