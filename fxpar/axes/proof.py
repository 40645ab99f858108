"""Proof of op rules: the real op on parts, put together again, against the whole op; outputs and input gradients.

For each sample call of a rule, each role that may be split (`free` or `sum`) and each factor found for it: every
operand is cut along the factor as the links say, the op runs on each part with the literals of `axes/local.py`, and
its outputs are put together, or added where the role is summed. There a part of zeros must add nothing, since axes that
do not divide are padded with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from fxpar import yamlfile
from fxpar.axes.infer import infer
from fxpar.axes.links import FREE, SUM
from fxpar.axes.oprule import OpRule
from fxpar.axes.parts import Parts
from fxpar.axes.sample import Sample, overload, read
from fxpar.errors import RuleError

#: The largest difference that rounding in float64 may make, relative to the largest element.
TOLERANCE = 1e-12


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
    asked = [each.when[0] for each in rule.equations if each.when is not None]
    for name in (*rule.terms, *rule.factors, *rule.sizes, *asked) if op else ():
        if name not in known:
            details = yamlfile.suggest(name, known)
            raise RuleError(f"`{rule.op}` has no argument `{name}`", place=rule.place, details=details)


def _prove_sample(rule: OpRule, entry: yamlfile.Node, sample: Sample) -> tuple[list[str], float, bool]:
    """The roles that a sample was split on, the largest error, and whether it has a role that may be split."""
    found = infer(sample.graph, {rule.op: rule})
    case = Parts(sample.call, sample.tensors, found)
    links = case.links
    proved, worst = [], 0.0
    for split in case.splits():
        error = _guarded(rule, entry, f"split on role `{split.role}`", partial(case.error_of, split))
        if links.roles[split.role].meaning == SUM and links.neutral:
            error = max(
                error,
                _guarded(rule, entry, f"on zeros along `{split.role}`", partial(case.error_of_zeros, split)),
            )
        proved.append("..." if split.role.startswith("...") else split.role)
        worst = max(worst, error)
    if links.linear or len(links.terms) == len(links.operands) > 1:
        worst = max(worst, _guarded(rule, entry, "on summands", case.error_of_sum))
    if links.numbers:
        worst = max(worst, _guarded(rule, entry, "on shares of a sum", case.error_of_shares))
    for index in sorted(links.products):
        worst = max(worst, _guarded(rule, entry, "on summands", partial(case.error_of_product, index)))
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
