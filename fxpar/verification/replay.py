"""The whole model with the random numbers of its ranks: each random op is run piece by piece, as the ranks run it.

    ranks            x0 -> dropout(x0, p, True, seed, 3, [0])      x1 -> dropout(x1, p, True, seed, 3, [1])
    whole model      x -> x0 | x1 -> the same two calls -> y0 | y1 -> y

There is a piece for each place on the mesh dims, and for each microbatch, over which the op's result is split. Cutting
and putting together are differentiable, so that gradients are those of the whole model with these masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxpar.axes.schema import op_name
from fxpar.capture import interpret
from fxpar.emit.manifest import TIME
from fxpar.errors import ModelError
from fxpar.mesh import GroupIndex
from fxpar.passes import Partition
from fxpar.runtime import layout
from fxpar.runtime.random import Randomness, stream_seed
from fxpar.shard.draw import Draw, Part
from fxpar.shard.position import STEP_SEED

Coordinate = Mapping[str, int]


def replay(partition: Partition, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    """Run the whole captured model with the random numbers of the ranks' first step; its flat outputs.

    `inputs` and `tensors` are as for `fxpar.capture.interpret.run`. Raises ModelError, naming the op, where torch's own
    random numbers are drawn: no rank draws the same.
    """
    step = Randomness(partition.manifest.seed).next()
    draws = {draw.node: draw for draw in partition.sharded.draws}

    def call(node: fx.Node, values: Mapping[fx.Node, Any], device: torch.device | None) -> Any:
        if node in draws:
            return _Replay(partition, draws[node], values, step, device).run()
        before = _generators(device)
        made = interpret.call(node, values, device)
        if any(not torch.equal(a, b) for a, b in zip(before, _generators(device))):
            raise _unknown(node)
        return made

    return interpret.run(partition.program, inputs, tensors, call=call)


def _generators(device: torch.device | None) -> list[Tensor]:
    """The states of the generators that ops draw from by default."""
    states = [torch.get_rng_state()]
    if device is not None and device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _unknown(node: fx.Node) -> ModelError:
    return ModelError(
        f"`{op_name(node)}` draws random numbers that cannot be drawn again",
        details=[
            f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})",
            "ranks draw them from torch's own generators, without a seed: there is nothing to hold them against",
            "verify the model in eval mode (model.eval(), --eval), or without this op",
        ],
    )


@dataclass(frozen=True)
class _Replay:
    """One random op of the whole model; `values` has those of its operands, `step` is the seed of the step."""

    partition: Partition
    draw: Draw
    values: Mapping[fx.Node, Any]
    step: int
    device: torch.device | None

    def run(self) -> Any:
        """The op's whole result."""
        coordinates = list(self._coordinates())
        pieces = [self._piece(at) for at in coordinates]
        if not self.draw.split_over:
            return pieces[0]
        if isinstance(pieces[0], Tensor):
            return joined(self.draw.outputs[0], pieces, coordinates)
        outputs = enumerate(self.draw.outputs)
        return tuple(joined(part, [piece[i] for piece in pieces], coordinates) for i, part in outputs)

    def _coordinates(self) -> Iterator[dict[str, int]]:
        """Every place at which the op draws other numbers."""
        sizes = self.draw.outputs[0].sizes
        spots = product(*(range(sizes[m]) for m in self.draw.split_over))
        return (dict(zip(self.draw.split_over, spot)) for spot in spots)

    def _piece(self, at: Coordinate) -> Any:
        """What the rank at a coordinate makes."""
        return self._called(self.draw.call, at)

    def _called(self, node: fx.Node, at: Coordinate) -> Any:
        args, options = pytree.tree_map(
            lambda leaf: self._argument(leaf, at), (tuple(node.args), dict(node.kwargs))
        )
        if str(node.target) == "fxpar.slice.default":
            whole, dim, spread, group = args[:4]
            return layout.part(whole, dim, spread, self.partition.mesh.size(group), at.get(group, 0))
        if node.meta.get("creates") and self.device is not None:
            options["device"] = self.device
        assert callable(node.target)
        return node.target(*args, **options)

    def _argument(self, leaf: Any, at: Coordinate) -> Any:
        """An argument as the rank at a coordinate has it."""
        if isinstance(leaf, GroupIndex):
            return at.get(leaf, 0)
        if not isinstance(leaf, fx.Node):
            return leaf
        if leaf in self.draw.operands:
            old, part = self.draw.operands[leaf]
            return self._operand(self.values[old], part, at)
        return self._seed(leaf.name, at) if leaf.op == "placeholder" else self._called(leaf, at)

    def _operand(self, value: Any, part: Part, at: Coordinate) -> Any:
        """A rank's part of an operand. Raises ModelError where ranks that draw alike have different parts."""
        if lost := [m for m in part.split_over if m not in self.draw.split_over]:
            what = f"the operands of `{op_name(self.draw.node)}` are split over {', '.join(lost)}, its numbers are not"
            raise ModelError(what, details=["they cannot be drawn again", "verify the model in eval mode"])
        return cut(value, part, at) if isinstance(value, Tensor) else value

    def _seed(self, name: str, at: Coordinate) -> int:
        return self.step if name == STEP_SEED else stream_seed(self.step, at.get(TIME, 0))


def cut(whole: Tensor, part: Part, at: Coordinate) -> Tensor:
    """The part of a tensor that lies at a coordinate, as a new tensor; padding is zero."""
    if not part.split_over:
        return whole
    local = whole.new_zeros(part.local_shape)
    for box in part.boxes(at):
        local[_slices(box.local, box.sizes)] = whole[_slices(box.offset, box.sizes)]
    return local


def joined(part: Part, pieces: Sequence[Tensor], coordinates: Iterable[Coordinate]) -> Tensor:
    """The whole tensor of the parts at all coordinates."""
    whole = pieces[0].new_empty(part.shape)
    for piece, at in zip(pieces, coordinates):
        for box in part.boxes(at):
            whole[_slices(box.offset, box.sizes)] = piece[_slices(box.local, box.sizes)]
    return whole


def _slices(start: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, sizes))
