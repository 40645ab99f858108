"""Composites: several ops that are recognised as one, by what they are and not by who wrote them.

The grammar stands at the top of `rules/composites/attention.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from fxpar import yamlfile
from fxpar.axes.factor import Dim, Factor, leaves
from fxpar.axes.infer import Inference
from fxpar.axes.links import FREE, SUM, Links
from fxpar.axes.schema import op_name
from fxpar.errors import Place, RuleError

FIELDS = ("composite", "product", "middle", "seen")
PLACES = ("lead", "rows", "columns", "inner")

#: Further than this from the middle no product is looked for.
REACH = 16


@dataclass(frozen=True)
class Composite:
    """One rule: the ops of the chain, and under which name each part of the first product is seen."""

    name: str
    place: Place
    product: frozenset[str]
    middle: frozenset[str]
    seen: Mapping[str, str]


def load(folders: Iterable[Path]) -> list[Composite]:
    """Read every `composites/*.yaml` of the folders of rules."""
    found = []
    for folder in folders:
        for path in sorted((folder / "composites").glob("*.yaml")):
            entries = yamlfile.load(path, RuleError, f"{folder.name}/composites/{path.name}").list()
            found += [_read(entry) for entry in entries]
    return found


def _read(entry: yamlfile.Node) -> Composite:
    fields = entry.mapping(FIELDS, required=FIELDS)
    name = fields["composite"]
    ops = [frozenset(op.text() for op in fields[key].one_or_more()) for key in ("product", "middle")]
    seen = {place: label.text() for place, label in fields["seen"].mapping(PLACES).items()}
    return Composite(name.text(), name.place, ops[0], ops[1], seen)


def sightings(
    found: Inference, rules: Iterable[Composite], made_by_weight: set[Factor]
) -> Iterator[tuple[fx.Node, str, Factor]]:
    """Everything that is seen at composites: (the first product, the sighting, the factor).

    `made_by_weight` are the factors that some weight makes, as against those of the batch.
    """
    for rule in rules:
        for node, links in found.links.items():
            if op_name(node) in rule.middle and links.ins:
                first = _upwards(node, rule, found)
                if first is not None and _downwards(node, rule, found):
                    yield from _seen(first, found.links[first], rule, made_by_weight)


def _upwards(node: fx.Node, rule: Composite, found: Inference) -> fx.Node | None:
    """The product that the middle is made from, through ops on each element and views."""
    for _ in range(REACH):
        sources = [n for n in node.all_input_nodes if n.meta.get("grad")]
        products = [n for n in sources if op_name(n) in rule.product]
        if products:
            return products[0]
        sources = [n for n in sources if _passes(n, found)]
        if not sources:
            return None
        node = max(sources, key=lambda n: n.meta["val"].numel())
    return None


def _downwards(node: fx.Node, rule: Composite, found: Inference) -> bool:
    """Whether what the middle makes goes into a product."""
    front = [node]
    for _ in range(REACH):
        users = [user for n in front for user in n.users]
        if any(op_name(user) in rule.product for user in users):
            return True
        front = [user for user in users if _passes(user, found)]
    return False


def _passes(node: fx.Node, found: Inference) -> bool:
    links = found.links.get(node)
    if links is None or not links.ins:
        return False
    return links.kind == "view" or all(role.startswith("...") for role in links.roles)


def _seen(
    node: fx.Node, links: Links, rule: Composite, made_by_weight: set[Factor]
) -> Iterator[tuple[fx.Node, str, Factor]]:
    for place, dims in _places(links).items():
        if place not in rule.seen:
            continue
        factors = list(dict.fromkeys(factor for dim in dims for factor in leaves(dim)))
        if place == "lead":
            factors = [factor for factor in factors if factor in made_by_weight]
        for position, factor in enumerate(factors):
            yield node, rule.seen[place], factor
            if position == 0:
                yield node, f"{rule.seen[place]}.major", factor


def _places(links: Links) -> dict[str, list[Dim]]:
    """The dims of a product by the part that they play, leading dims first."""
    places: dict[str, list[Dim]] = {place: [] for place in PLACES}
    for role, kind in links.roles.items():
        operands = {index - len(links.terms) for index, _, _ in links.sites(role) if index not in links.terms}
        made = any(True for _ in links.sites(role, outputs=True))
        dims = [dim for _, _, dim in links.sites(role)][:1]
        if kind.meaning == SUM:
            places["inner"] += dims
        elif kind.meaning == FREE and made:
            place = "lead" if operands >= {0, 1} else "rows" if 0 in operands else "columns"
            places[place] += dims
    return places
