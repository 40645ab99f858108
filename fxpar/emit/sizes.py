"""Sizes that differ from call to call, in the code of one function: read off its arguments, then computed with.

def forward(self, hidden, cos):
    batch, sequence, _ = hidden.shape                  # what is local here: half a sequence, say
    hidden = hidden.view(batch, sequence, 4, 16)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxpar.emit.names import Names
from fxpar.errors import EmitError
from fxpar.size import Polynomial, Size


class LocalSizes:
    """The variables of one function that hold the sizes of the dynamic axes, as far as it sees them.

    `scope` has the text of each argument, `names` what is free. A variable is the smallest part of an axis that is a
    dim of an argument, so that all other sizes are mostly multiples of it.
    """

    def __init__(self, scope: Mapping[fx.Node, str] | None = None, names: Names | None = None) -> None:
        self._names = names
        self._sources: dict[str, tuple[Fraction, str, int, int]] = {}
        """By axis: which part of it, the text of the argument, the dim, and how many dims the argument has."""
        self._scales: dict[str, tuple[str, Fraction]] = {}
        self._used: dict[str, None] = {}
        self.missing: dict[str, None] = {}
        """The axes that a size is made of and no argument shows."""
        for node, text in (scope or {}).items():
            for axis, part, dim, rank in _shown(node):
                if axis not in self._sources or part < self._sources[axis][0]:
                    self._sources[axis] = part, text, dim, rank

    def write(self, size: Size) -> str:
        """Return a size as an expression of variables, which are then assigned."""
        text = self.text(size)
        for axis in size.polynomial.axes:
            (self._used if axis in self._sources else self.missing)[axis] = None
        return text

    def text(self, size: int) -> str:
        """Return a size for a comment."""
        if not isinstance(size, Size):
            return str(size)
        scales = {axis: self._scale(axis) for axis in size.polynomial.axes}
        return str(size.polynomial.rescaled(scales))

    def assignments(self) -> Iterator[tuple[str, str]]:
        """Yield `batch, sequence, _` with `hidden.shape`, or `sequence` with `hidden.shape[1]`.

        Raises EmitError for a size that no argument shows.
        """
        if self.missing:
            words = " and ".join(f"`{axis}`" for axis in self.missing)
            raise EmitError(
                f"no argument of a stage shows the size of {words}",
                details=[f"leave {words} out of `dynamic`"],
            )
        wanted: dict[tuple[str, int], dict[int, str]] = {}
        for axis in self._used:
            _, text, dim, rank = self._sources[axis]
            wanted.setdefault((text, rank), {})[dim] = self._scale(axis)[0]
        for (text, rank), dims in wanted.items():
            if len(dims) == 1:
                ((dim, name),) = dims.items()
                yield name, f"{text}.shape[{dim}]"
            else:
                targets = ", ".join(dims.get(dim, "_") for dim in range(rank))
                yield targets, f"{text}.shape"

    def _scale(self, axis: str) -> tuple[str, Fraction]:
        """The variable of an axis, and which part of it that holds."""
        if axis not in self._scales:
            name = self._names.give(axis) if self._names is not None else axis
            self._scales[axis] = name, self._sources[axis][0] if axis in self._sources else Fraction(1)
        return self._scales[axis]


def shows(inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> bool:
    """Say whether the sizes of every dynamic axis in the arguments of some nodes can be read off `inputs`."""
    leaves = pytree.tree_leaves([(node.args, node.kwargs) for node in nodes])
    wanted = {axis for leaf in leaves if isinstance(leaf, Size) for axis in leaf.polynomial.axes}
    return wanted <= {axis for node in inputs for axis, *_ in _shown(node)}


def _shown(node: fx.Node) -> Iterator[tuple[str, Fraction, int, int]]:
    """Yield the dims of a value that are a part or a multiple of one axis: axis, part, dim, number of dims."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return
    shape = node.meta.get("sizes") or ()
    for dim, size in enumerate(shape):
        if isinstance(size, Size) and (found := _part(size.polynomial)):
            yield *found, dim, len(shape)


def _part(polynomial: Polynomial) -> tuple[str, Fraction] | None:
    if len(polynomial.terms) == 1:
        ((monomial, coefficient),) = polynomial.terms.items()
        if len(monomial) == 1 and monomial[0][1] == 1 and coefficient > 0:
            return monomial[0][0], coefficient
    return None
