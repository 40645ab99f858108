"""Rules of ops, read from `rules/ops/*.yaml`.

- op: aten.linear.default          # or a list of ops
  equation: "... i, o i, o? -> ... o"   # or a list, tried in order; `when training=false` behind one is a condition
  # or  shape: reshape             the handler in `axes/shapes.py` that knows such ops
  sum: [i]                         # roles whose split leaves the output Partial
  whole: [v]                       # roles that cannot be split
  lower: {v: embedding}            # roles whose split needs a lowering
  axes: [vocab]                    # the axes that lowerings split; all, if it is left out
  seen: {i: linear.in, o: linear.out}
  sizes: {groups: g}               # arguments that are the size of a role, or of the last ones of a list of roles
  terms: [bias]                    # arguments added to a summed result
  linear: true                     # Partial in, Partial out
  factors: [self, other]           # arguments in each of which it is linear: a Partial one gives a Partial product
  kind: view                       # it starts no split, it carries what its operand has
  meaning: whole                   # (shape handlers) what splitting the dims named by `dim` means
  proof: ["f[4,6,8], f[10,8]"]     # sample calls for `fxpar rules test`, see `axes/sample.py`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fxpar import yamlfile
from fxpar.axes import equation
from fxpar.axes.links import FREE, SUM, WHOLE, Role
from fxpar.errors import Place, RuleError

FIELDS = (
    "op",
    "equation",
    "shape",
    "sum",
    "whole",
    "lower",
    "axes",
    "seen",
    "sizes",
    "terms",
    "linear",
    "factors",
    "kind",
    "meaning",
    "proof",
)


@dataclass(frozen=True)
class OpRule:
    """How one op splits; see the module's grammar."""

    op: str
    place: Place
    equations: tuple[equation.Equation, ...] = ()
    shape: str = ""
    meanings: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    terms: tuple[str, ...] = ()
    linear: bool = False
    factors: tuple[str, ...] = ()
    kind: str = "op"
    meaning: str = WHOLE
    proof: tuple[yamlfile.Node, ...] = ()
    axes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where the rule stands, as `ops/linear.yaml:3`."""
        return f"{self.place.file}:{self.place.line}"

    def role(self, name: str) -> Role:
        """The role of that name: what splitting it means, and how it is seen."""
        return Role(self.meanings.get(name, FREE), self.seen.get(name, ""))

    def splittable(self) -> frozenset[str]:
        """The roles of the equations whose split is local work."""
        roles = frozenset[str]().union(*(e.roles for e in self.equations))
        return frozenset(role for role in roles if self.meanings.get(role, FREE) in (FREE, SUM))


def load(folders: Iterable[Path]) -> dict[str, OpRule]:
    """Read every `ops/*.yaml` of the folders of rules; later folders replace rules of earlier ones."""
    rules: dict[str, OpRule] = {}
    for folder in folders:
        mine: dict[str, OpRule] = {}
        for path in sorted((folder / "ops").glob("*.yaml")):
            for entry in yamlfile.load(path, RuleError, f"{folder.name}/ops/{path.name}").list():
                for rule in read(entry):
                    if rule.op in mine:
                        raise RuleError(
                            f"`{rule.op}` has a rule already, at {mine[rule.op].place}", place=rule.place
                        )
                    mine[rule.op] = rule
        rules.update(mine)
    return rules


def read(entry: yamlfile.Node) -> list[OpRule]:
    """One entry of a file: a rule for each op that it names."""
    from fxpar.axes.shapes import HANDLERS  # they take rules

    fields = entry.mapping(FIELDS, required=("op",))
    if ("equation" in fields) == ("shape" in fields):
        raise entry.wrong("a rule has either `equation` or `shape`")
    parsed = tuple(map(_equation, fields["equation"].one_or_more())) if "equation" in fields else ()
    known = frozenset[str]().union(*(e.roles for e in parsed))
    meanings: dict[str, str] = {}
    for name, meaning in (("sum", SUM), ("whole", WHOLE)):
        for role in fields[name].list() if name in fields else ():
            meanings[_known(role, known)] = meaning
    for role_name, lowering in (fields["lower"].mapping() if "lower" in fields else {}).items():
        meanings[_known_name(role_name, known, fields["lower"])] = lowering.text()
    seen = {
        _known_name(role, known, fields["seen"]): name.text()
        for role, name in (fields["seen"].mapping() if "seen" in fields else {}).items()
    }
    sizes = {
        argument: tuple(_known(role, known) for role in roles.one_or_more())
        for argument, roles in (fields["sizes"].mapping() if "sizes" in fields else {}).items()
    }
    return [
        OpRule(
            op.text(),
            op.place,
            parsed,
            fields["shape"].choice(HANDLERS) if "shape" in fields else "",
            meanings,
            seen,
            sizes,
            tuple(term.text() for term in fields["terms"].list()) if "terms" in fields else (),
            fields["linear"].flag() if "linear" in fields else False,
            tuple(name.text() for name in fields["factors"].list()) if "factors" in fields else (),
            fields["kind"].choice(("op", "view")) if "kind" in fields else "op",
            fields["meaning"].text() if "meaning" in fields else WHOLE,
            fields["proof"].list() if "proof" in fields else (),
            tuple(axis.text() for axis in fields["axes"].list()) if "axes" in fields else (),
        )
        for op in fields["op"].one_or_more()
    ]


def _equation(node: yamlfile.Node) -> equation.Equation:
    try:
        return equation.parse(node.text())
    except ValueError as error:
        raise node.wrong(str(error)) from None


def _known(role: yamlfile.Node, known: frozenset[str]) -> str:
    return _known_name(role.text(), known, role)


def _known_name(role: str, known: frozenset[str], node: yamlfile.Node) -> str:
    if known and role not in known:
        raise node.wrong(f"role `{role}` stands not in the equation", *yamlfile.suggest(role, known))
    return role
