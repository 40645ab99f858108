"""Names for axes: what was seen of a factor decides, never the name of a module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import fx

from fxpar import yamlfile
from fxpar.axes import composite
from fxpar.axes.factor import Dim, Factor, leaves, resolve
from fxpar.axes.infer import Inference
from fxpar.axes.links import SUM, Links
from fxpar.axes.selected import selected
from fxpar.errors import Place, RuleError

#: How a dimension is seen that a weight makes.
MADE_BY_WEIGHT = "linear.out"
#: How a factor is seen whose elements something nonlinear is done to: inner features have it, ranks of two weights
#: that are but one in two factors do not.
ACTIVATION = "activation"
#: How the numbered dim of a look-up is seen, and how where weights are looked up.
LOOKED_UP, STACK = "lookup.rows", "linear.stack"

#: How a dim is seen among whose rows integers choose, and how where these are inputs of the model: labels.
CHOSEN = {"gather.rows": "gather.labels", "one_hot.classes": "one_hot.labels"}

FIELDS = ("axis", "seen", "any", "unseen", "at_least", "extends")


@dataclass(frozen=True)
class NamingRule:
    """One entry of `axes.yaml`."""

    axis: str
    place: Place
    seen: tuple[str, ...]
    any: tuple[str, ...]
    unseen: tuple[str, ...]
    at_least: int
    extends: str = ""

    def matches(self, size: int, sightings: Iterable[str]) -> bool:
        """Whether a factor of that size, seen so, is an instance of this axis."""
        names = list(sightings)
        return (
            size >= self.at_least
            and all(_any_match(names, pattern) for pattern in self.seen)
            and (not self.any or any(_any_match(names, pattern) for pattern in self.any))
            and not any(_any_match(names, pattern) for pattern in self.unseen)
        )


def _any_match(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def load(folders: Iterable[Path]) -> list[NamingRule]:
    """Read `axes.yaml` of every folder of rules; the rules of later folders are asked first."""
    rules: list[NamingRule] = []
    for folder in folders:
        path = folder / "axes.yaml"
        if path.is_file():
            entries = yamlfile.load(path, RuleError, f"{folder.name}/axes.yaml").list()
            rules = [_read(entry) for entry in entries] + rules
    return rules


def _read(entry: yamlfile.Node) -> NamingRule:
    fields = entry.mapping(FIELDS, required=("axis",))

    def patterns(name: str) -> tuple[str, ...]:
        return tuple(p.text() for p in fields[name].one_or_more()) if name in fields else ()

    if "seen" not in fields and "any" not in fields:
        raise entry.wrong("an axis needs `seen` or `any`")
    least = fields["at_least"].integer(1) if "at_least" in fields else 1
    extends = fields["extends"].text() if "extends" in fields else ""
    axis = fields["axis"]
    return NamingRule(
        axis.text(), axis.place, patterns("seen"), patterns("any"), patterns("unseen"), least, extends
    )


@dataclass
class Naming:
    """The axis of every factor that has one, the rule that gave it, and everything that was seen."""

    rules: dict[Factor, NamingRule]
    sightings: dict[Factor, dict[str, fx.Node]]
    """For each factor the names under which it was seen, with the first node where it was."""
    extensions: Mapping[str, str]
    """Axis -> the axis that takes what is left of a mesh dim larger than its instances."""

    def axis(self, factor: Factor) -> str | None:
        """The name of a factor's axis."""
        rule = self.rules.get(factor)
        return rule.axis if rule else None

    def word(self, factor: Factor) -> str:
        """How a factor is written in factor notation: the name of its axis, or its size."""
        return self.axis(factor) or str(factor.size)


def name(
    found: Inference,
    inputs: Iterable[fx.Node],
    rules: Iterable[NamingRule],
    composites: Iterable[composite.Composite] = (),
) -> Naming:
    """Give names to factors, from what was seen of them at every node and at composites of several nodes."""
    seen: dict[Factor, dict[str, fx.Node]] = defaultdict(dict)
    dependent = _dependent(found, inputs)
    learned = _dependent(found, (n for n in found.dims if n.meta.get("kind") == "parameter"))
    weights = learned - dependent
    for node in inputs:
        for index, dim in enumerate(found.of(node)):
            for factor in leaves(dim):
                seen[factor].setdefault(f"input.dim{index}", node)
    chosen = selected(found)
    again = _repeated(found, weights | dependent)
    for node, links in found.links.items():
        of = _Weights.of(node, found, weights, chosen)
        for label, dim in _labels(links):
            label = _by_labels(node, of.label(label, dim), learned)
            factors = list(leaves(resolve(dim)))
            suffix = "" if node in dependent else ".constant"
            for factor in factors:
                seen[factor].setdefault(label + suffix, node)
            for factor in composite.leading(factors, again):
                seen[factor].setdefault(f"{label}.major{suffix}", node)
        if _activates(node, links):
            for factor in _untouched(links):
                seen[factor].setdefault(ACTIVATION, node)
    by_weight = {factor for factor, labels in seen.items() if MADE_BY_WEIGHT in labels}
    for node, label, factor in composite.sightings(found, composites, by_weight, dependent, again):
        seen[factor].setdefault(label, node)
    ordered = list(rules)
    named = {}
    for factor, sightings in seen.items():
        rule = next((r for r in ordered if r.matches(factor.size, sightings)), None)
        if rule:
            named[factor] = rule
    return Naming(named, dict(seen), {rule.extends: rule.axis for rule in ordered if rule.extends})


def _by_labels(node: fx.Node, label: str, learned: set[fx.Node]) -> str:
    """How a dim is seen whose rows are chosen by integers: otherwise where no parameter has a part in them."""
    integers = (n for n in node.all_input_nodes if not n.meta["val"].is_floating_point())
    return CHOSEN[label] if label in CHOSEN and learned.isdisjoint(integers) else label


def _activates(node: fx.Node, links: Links) -> bool:
    """Whether an op is neither linear nor random: a nonlinear function, or a product of values that both vary."""
    if links.kind != "op" or links.terms or not links.ins or _sums(links):
        return False
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return len(links.ins) > 1 if links.linear else not random


def _sums(links: Links) -> bool:
    return any(role.meaning == SUM for role in links.roles.values())


def _untouched(links: Links) -> set[Factor]:
    """The factors of all operands that the output has, too."""
    ins = [
        {f for pieces in tensor for _, dim in pieces for f in leaves(resolve(dim))} for tensor in links.ins
    ]
    outs = {
        f for tensor in links.outs for pieces in tensor for _, dim in pieces for f in leaves(resolve(dim))
    }
    return outs.intersection(*ins)


@dataclass(frozen=True)
class _Weights:
    """Which operands of a node are weights, and how it is seen therefore."""

    any: bool
    first: bool
    """The first operand, and no other one."""
    stacked: frozenset[Factor]
    """Factors of the weights that are not selected."""
    selects: bool

    @staticmethod
    def of(node: fx.Node, found: Inference, weights: set[fx.Node], chosen: set[fx.Node]) -> _Weights:
        """What there is to know of a node."""
        links = found.links[node]
        operands = links.operands[len(links.terms) :]
        are = [operand in weights or operand in chosen for operand in operands]
        whole = [dim for operand in operands if operand in weights for dim in found.of(operand)]
        stacked = frozenset(factor for dim in whole for factor in leaves(dim))
        return _Weights(any(are), any(are[:1]) and not all(are), stacked, node in chosen)

    def label(self, label: str, dim: Dim) -> str:
        """How a part of the node is seen: what a selected weight shares with the other operand are rows, no stack."""
        kind, _, part = label.partition(".")
        if label == LOOKED_UP and self.selects:
            return STACK
        if kind != "matmul" or not self.any:
            return label
        if self.first:
            part = {"rows": "out", "out": "rows"}.get(part, part)
        if part == "lead":
            part = "stack" if self.stacked.issuperset(leaves(resolve(dim))) else "rows"
        return f"linear.{part}"


def _labels(links: Links) -> Iterator[tuple[str, Dim]]:
    """Every (sighting, dim) of a node; pieces of one dim that are seen alike count as one."""
    for tensor in (*links.ins, *links.outs):
        for pieces in tensor:
            labels: dict[str, Dim] = {}
            for role, dim in pieces:
                label = links.roles[role].seen
                if label:
                    labels[label] = labels.get(label, ()) + dim
            yield from labels.items()


def _repeated(found: Inference, nodes: Iterable[fx.Node]) -> set[Factor]:
    """The factors along which some of the nodes have the same elements again: views made them."""
    made = set()
    for node in nodes:
        links = found.links.get(node)
        if links is None or links.kind != "view" or not links.ins:
            continue
        for role in links.roles:
            if not any(True for _ in links.sites(role)):
                made |= {f for _, _, dim in links.sites(role, outputs=True) for f in leaves(dim)}
    return made


def _dependent(found: Inference, roots: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that depends on one of the roots."""
    dependent = set(roots)
    for node in found.dims:
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    return dependent
