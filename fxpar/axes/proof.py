"""Proof of op rules: the real op on parts, put together again, against the whole op; outputs and input gradients.

For each sample call of a rule, each role that may be split (`free` or `sum`) and each factor found for it: every
operand is cut along the factor as the links say, the op runs on each part with the literals of `axes/local.py`, and
its outputs are put together, or added where the role is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxpar import yamlfile
from fxpar.axes.cut import cut_size, positions, put, take
from fxpar.axes.factor import Factor, resolve
from fxpar.axes.infer import Inference, infer
from fxpar.axes.links import FREE, SUM, Links
from fxpar.axes.local import localize
from fxpar.axes.oprule import OpRule
from fxpar.axes.sample import Sample, overload, read
from fxpar.errors import RuleError

#: The largest difference that rounding in float64 may make, relative to the largest element.
TOLERANCE = 1e-12

Tensors: TypeAlias = dict[fx.Node, Tensor]
Run: TypeAlias = Callable[[Tensors], list[Tensor]]


@dataclass(frozen=True)
class Proof:
    """What was proved of one rule."""

    rule: OpRule
    roles: tuple[str, ...] = ()
    """The roles on which the op was split; of a view, its dims."""
    samples: int = 0
    worst: float = 0.0
    """The largest difference between the op in parts and the whole one."""

    def __str__(self) -> str:
        roles = ", ".join(self.roles) or "whole"
        return f"{self.rule.op}: {roles}; {self.samples} samples, worst error {self.worst:.1e}"


def prove_all(rules: Iterable[OpRule]) -> tuple[list[Proof], list[RuleError]]:
    """Prove every rule. Returns the proofs, and an error for each rule that is wrong or not proved."""
    proofs, errors = [], []
    for rule in rules:
        try:
            proofs.append(prove(rule))
        except RuleError as error:
            errors.append(error)
    return proofs, errors


def prove(rule: OpRule) -> Proof:
    """Prove one rule by its samples.

    Raises RuleError where a split of the op differs from the whole op, where a role that may be split is split in no
    sample, and where a sample cannot be read.
    """
    proof = Proof(rule)
    _check_arguments(rule)
    possible = not rule.proof and rule.shape not in ("create", "whole", "opaque")
    for entry in rule.proof:
        sample = read(entry, rule.op)
        if sample is not None:
            roles, worst, free = _prove_sample(rule, entry, sample)
            possible |= free
            names = tuple(dict.fromkeys((*proof.roles, *roles)))
            proof = replace(proof, roles=names, samples=proof.samples + 1, worst=max(proof.worst, worst))
    missing = sorted(rule.splittable() - set(proof.roles))
    if missing or (possible and not proof.roles):
        what = f"role `{missing[0]}`" if missing else "anything"
        raise RuleError(
            f"no sample splits `{rule.op}` on {what}", place=rule.place, details=["add one to `proof`"]
        )
    return proof


def _check_arguments(rule: OpRule) -> None:
    """Raise RuleError for an argument that the op does not have."""
    op = overload(rule.op)
    known = [argument.name for argument in op._schema.arguments] if op else []
    for name in (*rule.terms, *rule.sizes) if op else ():
        if name not in known:
            details = yamlfile.suggest(name, known)
            raise RuleError(f"`{rule.op}` has no argument `{name}`", place=rule.place, details=details)


def _prove_sample(rule: OpRule, entry: yamlfile.Node, sample: Sample) -> tuple[list[str], float, bool]:
    """The roles that a sample was split on, the largest error, and whether it has a role that may be split."""
    found = infer(sample.graph, {rule.op: rule})
    links = found.links[sample.call]
    case = _Case(sample, found, links, _call(sample.call))
    proved, worst = [], 0.0
    for split in case.splits():
        error = _guarded(rule, entry, f"split on role `{split.role}`", partial(case.error_of, split))
        proved.append("..." if split.role.startswith("...") else split.role)
        worst = max(worst, error)
    if links.linear or len(links.terms) == len(links.operands) > 1:
        worst = max(worst, _guarded(rule, entry, "on summands", case.error_of_sum))
    return proved, worst, any(role.meaning in (FREE, SUM) for role in links.roles.values())


def _guarded(rule: OpRule, entry: yamlfile.Node, how: str, measure: Callable[[], float]) -> float:
    """The error that was measured. Raises RuleError where it is too large, or where the op does not run so."""
    at = f"{entry.place.file}:{entry.place.line}: {entry.text()}"
    try:
        error = measure()
    except (RuntimeError, ValueError, IndexError, TypeError) as reason:
        lines = [at, *str(reason).splitlines()[:1]]
        raise RuleError(f"`{rule.op}` {how} does not run", place=rule.place, details=lines) from reason
    if not error <= TOLERANCE:
        raise RuleError(
            f"`{rule.op}` {how} differs from the whole op by {error:.1e}", place=rule.place, details=[at]
        )
    return error


@dataclass(frozen=True)
class _Split:
    role: str
    factor: Factor
    parts: int


@dataclass
class _Case:
    """One sample with its links."""

    sample: Sample
    found: Inference
    links: Links
    run: Run

    def splits(self) -> Iterable[_Split]:
        """Every role and factor to be tried, each cut into the smallest number of parts, 2 or 3."""
        for name, role in self.links.roles.items():
            for factor in self.links.factors(name) if role.meaning in (FREE, SUM) else ():
                for parts in [p for p in (2, 3) if factor.size % p == 0][:1]:
                    yield _Split(name, factor, parts)

    def error_of(self, split: _Split) -> float:
        """How far the op in parts is from the whole one."""
        if self.undetermined():
            return _shape_error(self.run(self.sample.tensors), self.parts_of(split)(self.sample.tensors))
        return _difference(self.run, self.parts_of(split), self.sample.tensors)

    @torch.no_grad()
    def error_of_sum(self) -> float:
        """How far the op of a sum is from the sum of the op."""
        tensors = self.sample.tensors
        other = {n: torch.randn_like(t) if t.requires_grad else t for n, t in tensors.items()}
        both = {n: t + other[n] if t.requires_grad else t for n, t in tensors.items()}
        pairs = zip(self.run(both), self.run(tensors), self.run(other))
        return max((_distance(a + b, whole) for whole, a, b in pairs if _numeric(whole)), default=0.0)

    @torch.no_grad()
    def undetermined(self) -> bool:
        """Whether two equal calls differ, so that only shapes can be compared."""
        if "empty" in str(self.sample.call.target):
            return True
        torch.manual_seed(1)
        first = self.run(self.sample.tensors)
        return any(_distance(a, b) > 0 for a, b in zip(first, self.run(self.sample.tensors)))

    def parts_of(self, split: _Split) -> Run:
        """The op on every part, put together."""
        call = self.localized(split)
        sites = _by_tensor(self.links, split.role, outputs=False)
        made = _by_tensor(self.links, split.role, outputs=True)
        summed = self.links.roles[split.role].meaning == SUM

        def run(tensors: Tensors) -> list[Tensor]:
            outs = []
            for part in range(split.parts):
                local = dict(tensors)
                for index, node in enumerate(self.links.operands):
                    if index in sites:
                        axis, dim = sites[index]
                        local[node] = take(
                            tensors[node], axis, positions(dim, split.factor, part, split.parts)
                        )
                    elif summed and index in self.links.terms and part > 0:
                        local[node] = torch.zeros_like(tensors[node])
                outs.append(call(local))
            return [self.joined(list(out), made.get(k), split, summed) for k, out in enumerate(zip(*outs))]

        return run

    def localized(self, split: _Split) -> Run:
        """The call that one part makes."""
        made = _by_tensor(self.links, split.role, outputs=True)
        cuts = {split.factor: split.parts}

        def local_dim(node: fx.Node, output: int, dim: int) -> int:
            here = output in made and made[output][0] == dim
            return cut_size(resolve(self.found.dims[node][output][dim]), cuts if here else {})

        target, args, kwargs = localize(
            self.sample.call, self.found, local_dim, lambda dim: cut_size(dim, cuts)
        )
        return _runner(target, args, kwargs)

    def joined(self, parts: list[Tensor], site: _Site | None, split: _Split, summed: bool) -> Tensor:
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
_Site: TypeAlias = tuple[int, tuple[Any, ...]]


def _by_tensor(links: Links, role: str, *, outputs: bool) -> dict[int, _Site]:
    """Where a role stands, by number of the operand or output: the axis, and the whole dim there."""
    tensors = links.outs if outputs else links.ins
    return {
        index: (axis, resolve(tuple(term for _, piece in tensors[index][axis] for term in piece)))
        for index, axis, _ in links.sites(role, outputs=outputs)
    }


def _call(node: fx.Node) -> Run:
    return _runner(node.target, node.args, dict(node.kwargs))


def _runner(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
    """A function that makes the call with real tensors for nodes."""

    def run(tensors: Tensors) -> list[Tensor]:
        real = fx.node.map_arg((args, kwargs), lambda node: tensors[node])
        out = target(*real[0], **real[1])
        return list(out) if isinstance(out, (list, tuple)) else [out]

    return run


def _difference(whole: Run, parts: Run, tensors: Tensors) -> float:
    """The largest difference of outputs and of input gradients between two ways to compute the same."""
    results = []
    for run in (whole, parts):
        leaves = {n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in tensors.items()}
        outs = run(leaves)
        results.append([*outs, *_gradients(outs, [t for t in leaves.values() if t.requires_grad])])
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
