"""Composites: several ops that are recognised as one, by what they are and not by who wrote them.

The grammar stands at the top of `rules/composites/attention.yaml`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
PLACES = ("lead", "rows", "columns", "inner", "values")

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
    found: Inference,
    rules: Iterable[Composite],
    made_by_weight: set[Factor],
    dependent: Collection[fx.Node],
    repeated: Collection[Factor] = (),
) -> Iterator[tuple[fx.Node, str, Factor]]:
    """Everything that is seen at composites: (the first product, the sighting, the factor).

    `made_by_weight` are the factors that some weight makes, as against those of the batch; `dependent` are the nodes
    that depend on inputs of the model; along `repeated` factors elements are the same.
    """
    for rule in rules:
        for node, links in found.links.items():
            if op_name(node) in rule.middle and links.ins:
                first, last = _upwards(node, rule, found), _downwards(node, rule, found)
                if first and last and _along_columns(node, first, found, dependent):
                    places = _places(found.links[first]) | {"values": _values(*last, found)}
                    made = made_by_weight if _operands(found.links[first])[0] in dependent else set()
                    shared = _factors(places, made_by_weight, made)
                    yield from _seen(first, shared, rule, repeated)


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


def _downwards(node: fx.Node, rule: Composite, found: Inference) -> tuple[fx.Node, fx.Node] | None:
    """The product that what the middle makes goes into, and which of its operands that is."""
    front = [node]
    for _ in range(REACH):
        uses = [(user, n) for n in front for user in n.users]
        products = [(user, n) for user, n in uses if op_name(user) in rule.product]
        if products:
            return products[0]
        front = [user for user, _ in uses if _passes(user, found)]
    return None


def _values(product: fx.Node, weights: fx.Node, found: Inference) -> list[Dim]:
    """The dims of the last product that come from the values alone, not from the weights that the middle made."""
    links = found.links[product]
    first = _operands(links)[0] is weights
    return _places(links)["columns" if first else "rows"]


def _along_columns(node: fx.Node, first: fx.Node, found: Inference, dependent: Collection[fx.Node]) -> bool:
    """Whether the middle runs along what the second operand alone has, and that operand is no weight: no router."""
    links, middle = found.links[first], found.links[node]
    operands = _operands(links)
    along = [
        dim
        for role, kind in middle.roles.items()
        if kind.meaning not in (FREE, SUM)
        for _, _, dim in middle.sites(role)
    ]
    run = {factor for dim in along for factor in leaves(dim)}
    columns = {factor for dim in _places(links)["columns"] for factor in leaves(dim)}
    return len(operands) == 2 and operands[1] in dependent and not run.isdisjoint(columns)


def _operands(links: Links) -> tuple[fx.Node, ...]:
    return links.operands[len(links.terms) :]


def _passes(node: fx.Node, found: Inference) -> bool:
    links = found.links.get(node)
    if links is None or not links.ins:
        return False
    return links.kind == "view" or all(role.startswith("...") for role in links.roles)


def _seen(
    node: fx.Node,
    places: Mapping[str, list[Factor]],
    rule: Composite,
    repeated: Collection[Factor],
) -> Iterator[tuple[fx.Node, str, Factor]]:
    for place, factors in places.items():
        if place in rule.seen:
            for factor in factors:
                yield node, rule.seen[place], factor
            for factor in leading(factors, repeated):
                yield node, f"{rule.seen[place]}.major", factor


def _factors(
    places: Mapping[str, list[Dim]], by_weight: set[Factor], rows_by_weight: set[Factor]
) -> dict[str, list[Factor]]:
    """The factors of each place. Rows that a weight made, if it made no columns, are leads that all columns share.

    queries [batch, head, row, depth] and the only head of keys [batch, 1, column, depth]:  head leads
    """
    found = {
        place: list(dict.fromkeys(f for dim in dims for f in leaves(dim))) for place, dims in places.items()
    }
    made = rows_by_weight if rows_by_weight.isdisjoint(found["columns"]) else set()
    lead = [factor for factor in found["lead"] if factor in by_weight]
    shared = [factor for factor in found["rows"] if factor in made and factor not in lead]
    rows = [factor for factor in found["rows"] if factor not in made]
    return found | {"lead": lead + shared, "rows": rows}


def leading(factors: Sequence[Factor], repeated: Collection[Factor]) -> Sequence[Factor]:
    """The first factor along which elements are not just the same again, or else the first one; none of none."""
    return [factor for factor in factors if factor not in repeated][:1] or factors[:1]


def _places(links: Links) -> dict[str, list[Dim]]:
    """The dims of a product by the part that they play, leading dims first."""
    places: dict[str, list[Dim]] = {place: [] for place in ("lead", "rows", "columns", "inner")}
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
