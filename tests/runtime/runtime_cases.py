"""What every conversion must give, computed from the whole tensors by index lists; for threads and for processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxpar import runtime

LAYOUTS = ([], [1, 4], [4, 1], [2, 2], [1, 2, 1, 1, 1, 1], [2, 1, 1, 2])


@dataclass
class Case:
    """A conversion, its argument on each rank, and by rank what must come of it and of the gradients given."""

    call: Callable[[Tensor, str], Tensor]
    inputs: list[Tensor]
    outputs: list[Tensor]
    output_grads: list[Tensor]
    input_grads: list[Tensor]

    def run(self, rank: int, group: str) -> None:
        """Check forward and backward on one rank; the argument is not contiguous."""
        x = self.inputs[rank].mT.contiguous().mT
        if x.is_floating_point():
            x.requires_grad_()
        y = self.call(x, group)
        assert y.data_ptr() != x.data_ptr()
        assert y.is_contiguous()
        torch.testing.assert_close(y.detach(), self.outputs[rank])
        if x.is_floating_point():
            y.backward(self.output_grads[rank])
            torch.testing.assert_close(x.grad, self.input_grads[rank])


def length(layout: list[int]) -> int:
    """The length of a part; four for the empty layout."""
    return sum(outer * inner for outer, inner in zip(layout[::2], layout[1::2])) if layout else 4


def positions(layout: list[int], ranks: int, rank: int) -> Tensor:
    """Where the elements of a rank's part stand in the whole."""
    found, start = [], 0
    for outer, inner in zip(layout[::2], layout[1::2]) if layout else [(1, 4)]:
        found += [start + (o * ranks + rank) * inner + i for o in range(outer) for i in range(inner)]
        start += outer * ranks * inner
    return torch.tensor(found)


def cases(ranks: int, layout: list[int], dim: int, dtype: torch.dtype = torch.float64) -> dict[str, Case]:
    """One case for each conversion, of tensors with three dimensions, split along `dim`."""
    generator = torch.Generator().manual_seed(ranks)
    other = (dim + 1) % 3
    part_shape, whole_shape = [2, 2, 2], [2, 2, 2]
    part_shape[dim], whole_shape[dim] = length(layout), length(layout) * ranks
    own = [positions(layout, ranks, rank) for rank in range(ranks)]

    def draw(shape: list[int]) -> list[Tensor]:
        return [torch.randint(-4, 5, shape, generator=generator).to(dtype) for _ in range(ranks)]

    def cut(x: Tensor) -> list[Tensor]:
        return [x.index_select(dim, index) for index in own]

    def total(xs: list[Tensor]) -> Tensor:
        summed = torch.stack(xs).sum(0)
        return summed.bool() if dtype == torch.bool else summed.to(dtype)

    def joined(xs: list[Tensor]) -> Tensor:
        whole = xs[0].new_empty(whole_shape)
        for x, index in zip(xs, own):
            whole.index_copy_(dim, index, x)
        return whole

    def padded(x: Tensor, index: Tensor) -> Tensor:
        return x.new_zeros(whole_shape).index_copy_(dim, index, x)

    parts, part_grads = draw(part_shape), draw(part_shape)
    wholes, whole_grads = draw(whole_shape), draw(whole_shape)
    same, same_grad = [wholes[0]] * ranks, [whole_grads[0]] * ranks
    summed, grads_summed = [total(wholes)] * ranks, [total(whole_grads)] * ranks
    options = {"layout": layout}

    # all_to_all: from parts along `dim`, whole along `other`, to the reverse.
    mixed_shape = list(part_shape)
    mixed_shape[other] *= ranks
    crossed, crossed_grads = draw(mixed_shape), draw(whole_shape)

    def crossing(xs: list[Tensor], rank: int) -> Tensor:
        return joined([x.chunk(ranks, other)[rank] for x in xs])

    def back(xs: list[Tensor], rank: int) -> Tensor:
        return torch.cat([x.index_select(dim, own[rank]) for x in xs], other)

    zeros = [torch.zeros_like(wholes[0])] * (ranks - 1)
    return {
        "sum_gradient": Case(runtime.sum_gradient, wholes, wholes, whole_grads, grads_summed),
        "all_reduce": Case(runtime.all_reduce, wholes, summed, same_grad, same_grad),
        "all_reduce_both": Case(runtime.all_reduce_both, wholes, summed, whole_grads, grads_summed),
        "all_gather": Case(
            lambda x, g: runtime.all_gather(x, dim, g, **options),
            parts, [joined(parts)] * ranks, whole_grads, cut(total(whole_grads)),
        ),
        "all_gather, slice": Case(
            lambda x, g: runtime.all_gather(x, dim - 3, g, backward="slice", **options),
            parts, [joined(parts)] * ranks, same_grad, cut(whole_grads[0]),
        ),
        "reduce_scatter": Case(
            lambda x, g: runtime.reduce_scatter(x, dim, g, **options),
            wholes, cut(total(wholes)), part_grads, [joined(part_grads)] * ranks,
        ),
        "slice": Case(
            lambda x, g: runtime.slice(x, dim, g, **options),
            same, cut(wholes[0]), part_grads, [joined(part_grads)] * ranks,
        ),
        "slice, pad": Case(
            lambda x, g: runtime.slice(x, dim, g, backward="pad", **options),
            same, cut(wholes[0]), part_grads, [padded(x, index) for x, index in zip(part_grads, own)],
        ),
        "all_to_all": Case(
            lambda x, g: runtime.all_to_all(x, dim, other, g, gather_layout=layout),
            crossed, [crossing(crossed, r) for r in range(ranks)],
            crossed_grads, [back(crossed_grads, r) for r in range(ranks)],
        ),
        "keep_on_first": Case(
            runtime.keep_on_first, same, [wholes[0], *zeros], same_grad, same_grad
        ),
        "keep_gradient_on_first": Case(
            runtime.keep_gradient_on_first, same, same, same_grad, [same_grad[0], *zeros]
        ),
        "keep_both_on_first": Case(
            runtime.keep_both_on_first, same, [wholes[0], *zeros], same_grad, [same_grad[0], *zeros]
        ),
    }  # fmt: skip
