"""One call in parts: every operand cut along a factor, the op on each part, the outputs put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxpar.axes.cut import positions, put, take
from fxpar.axes.factor import Dim, Factor, resolve, size_of
from fxpar.axes.infer import Inference
from fxpar.axes.links import FREE, SUM, Links
from fxpar.axes.local import localize
from fxpar.axes.runs import cut_size

#: A way to make a call: tensors of the operands, in the order of the links, to those of the outputs.
Run: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Split:
    """A role of a call, one of its factors, and the number of equal parts to cut it into."""

    role: str
    factor: Factor
    parts: int


@dataclass
class Parts:
    """A call of a graph, real values of the nodes before it, and what inference found."""

    call: fx.Node
    values: Mapping[fx.Node, Any]
    found: Inference

    @property
    def tensors(self) -> list[Tensor]:
        """The values of the operands."""
        return [self.values[node] for node in self.links.operands]

    @property
    def links(self) -> Links:
        """The roles of the call."""
        return self.found.links[self.call]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the whole call."""
        return _runner(self.call.target, self.call.args, dict(self.call.kwargs))(tensors)

    def splits(self) -> Iterable[Split]:
        """Every role and factor to be tried, each cut into the smallest number of parts, 2 or 3."""
        if self.links.kind == "create":
            return
        for name, role in self.links.roles.items():
            for factor in self.links.factors(name) if role.meaning in (FREE, SUM) else ():
                for parts in [p for p in (2, 3) if factor.size % p == 0][:1]:
                    yield Split(name, factor, parts)

    def error_of(self, split: Split) -> float:
        """How far the op in parts is from the whole one."""
        if self.undetermined():
            return _shape_error(self.run(self.tensors), self.parts_of(split)(self.tensors))
        return _difference(self.run, self.parts_of(split), self.tensors)

    @torch.no_grad()
    def error_of_sum(self) -> float:
        """How far the op of a sum is from the sum of the op."""
        tensors = self.tensors
        other = [torch.randn_like(t) if t.requires_grad else t for t in tensors]
        both = [t + other[i] if t.requires_grad else t for i, t in enumerate(tensors)]
        pairs = zip(self.run(both), self.run(tensors), self.run(other))
        return max((_distance(a + b, whole) for whole, a, b in pairs if _numeric(whole)), default=0.0)

    @torch.no_grad()
    def error_of_zeros(self, split: Split) -> float:
        """How far from zero is what a part of zeros adds to a sum over the role."""
        local = list(self.tensors)
        for index, (axis, dim) in _by_tensor(self.links, split.role, outputs=False).items():
            part = take(local[index], axis, positions(dim, split.factor, 0, split.parts))
            local[index] = torch.zeros_like(part)
        for index in self.links.terms:
            local[index] = torch.zeros_like(local[index])
        return max(
            (_distance(out, torch.zeros_like(out)) for out in self.localized(split)(local)), default=0.0
        )

    @torch.no_grad()
    def error_of_product(self, index: int) -> float:
        """How far the op of a sum as operand `index` is from the sum of the op, the other operands as they are."""
        first, other, both = (list(self.tensors) for _ in range(3))
        other[index] = torch.randn_like(first[index])
        both[index] = first[index] + other[index]
        pairs = zip(self.run(both), self.run(first), self.run(other))
        return max((_distance(a + b, whole) for whole, a, b in pairs), default=0.0)

    @torch.no_grad()
    def error_of_shares(self) -> float:
        """How far the op of halves, its numbers among them, is from half of the op."""
        shape = self.call.meta["val"].shape
        call = _runner(*localize(self.call, self.found, lambda *at: shape[at[2]], size_of, shares=2))
        halves = [tensor / 2 for tensor in self.tensors]
        return max(_distance(2 * half, whole) for half, whole in zip(call(halves), self.run(self.tensors)))

    @torch.no_grad()
    def undetermined(self) -> bool:
        """Whether two equal calls differ, so that only shapes can be compared."""
        if "empty" in str(self.call.target):
            return True
        torch.manual_seed(1)
        first = self.run(self.tensors)
        return any(_distance(a, b) > 0 for a, b in zip(first, self.run(self.tensors)))

    def parts_of(self, split: Split) -> Run:
        """The op on every part, put together."""
        call = self.localized(split)
        sites = _by_tensor(self.links, split.role, outputs=False)
        made = _by_tensor(self.links, split.role, outputs=True)
        summed = self.links.roles[split.role].meaning == SUM

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            outs = []
            for part in range(split.parts):
                local = list(tensors)
                for index, (axis, dim) in sites.items():
                    local[index] = take(tensors[index], axis, positions(dim, split.factor, part, split.parts))
                for index in self.links.terms if summed and part > 0 else ():
                    local[index] = torch.zeros_like(local[index])
                outs.append(call(local))
            return [self.joined(list(out), made.get(k), split, summed) for k, out in enumerate(zip(*outs))]

        return run

    def localized(self, split: Split) -> Run:
        """The call that one part makes."""
        made = _by_tensor(self.links, split.role, outputs=True)
        cuts = {split.factor: split.parts}

        def local_dim(node: fx.Node, output: int, dim: int) -> int:
            here = output in made and made[output][0] == dim
            return cut_size(resolve(self.found.dims[node][output][dim]), cuts if here else {})

        target, args, kwargs = localize(self.call, self.found, local_dim, lambda dim: cut_size(dim, cuts))
        return _runner(target, args, kwargs)

    def joined(self, parts: list[Tensor], site: _Site | None, split: Split, summed: bool) -> Tensor:
        """One output from those of the parts."""
        if site is not None:
            axis, dim = site
            where = [positions(dim, split.factor, part, split.parts) for part in range(split.parts)]
            return put(parts, axis, where)
        if summed:
            return torch.stack(parts).sum(0).to(parts[0].dtype)
        if any(_distance(part, parts[0]) > 0 for part in parts):
            raise ValueError("an output that is not split differs between the parts")
        return parts[0]


#: The axis of a tensor at which a role stands, and its dim there.
_Site: TypeAlias = tuple[int, Dim]


def _by_tensor(links: Links, role: str, *, outputs: bool) -> dict[int, _Site]:
    """Where a role stands, by number of the operand or output: the axis, and the whole dim there."""
    tensors = links.outs if outputs else links.ins
    return {
        index: (axis, resolve(tuple(term for _, piece in tensors[index][axis] for term in piece)))
        for index, axis, _ in links.sites(role, outputs=outputs)
    }


def _runner(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """A function that makes the call with tensors for its nodes, one after the other."""

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        remaining = iter(tensors)
        real = fx.node.map_arg((args, kwargs), lambda _: next(remaining))
        out = target(*real[0], **real[1])
        return list(out) if isinstance(out, (list, tuple)) else [out]

    return run


def _difference(whole: Run, parts: Run, tensors: Sequence[Tensor]) -> float:
    """The largest difference of outputs and of input gradients between two ways to compute the same."""
    results = []
    for run in (whole, parts):
        leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        outs = run(leaves)
        results.append([*outs, *_gradients(outs, [t for t in leaves if t.requires_grad])])
    return max(_distance(a, b) for a, b in zip(*results, strict=True))


def _gradients(outs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of a weighted sum of all outputs, equal weights for equal shapes."""
    torch.manual_seed(2)
    weights = [torch.randn(out.shape, dtype=torch.float64) for out in outs]
    terms = [(out * w).sum() for out, w in zip(outs, weights) if out.requires_grad]
    if not terms or not leaves:
        return []
    total = torch.stack([torch.view_as_real(t).sum() if t.is_complex() else t.double() for t in terms]).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)]


def _numeric(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _shape_error(whole: list[Tensor], parts: list[Tensor]) -> float:
    return 0.0 if [t.shape for t in whole] == [t.shape for t in parts] else float("inf")


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest element; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.detach().to(wide), b.detach().to(wide)
    same = (x == y) | (x.isnan() & y.isnan())
    scale = max(1.0, float(torch.where(y.abs().isfinite(), y.abs(), 0.0).max()))
    gap = torch.where(same, 0.0, (x - y).abs().to(torch.float64)).nan_to_num(nan=float("inf"))
    return float(gap.max()) / scale
