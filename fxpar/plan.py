"""The plan: how many ranks each mesh dim has, which axis goes over which of them, and how stages are cut and run.

tp: 2
pp: 2
splits:                  # rows that replace or extend those of rules/splits/default.yaml
  sequence: [cp, "tp?"]  # in this order; `?`: an instance that does not divide stays whole
  vocab: null            # never split
cut:
  at: [model.layers.6]   # the modules with which the second and later stages begin; or layers: [6, 6]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from fxpar import settings, yamlfile
from fxpar.errors import FxparError, Place, PlanError, Violations, raise_all
from fxpar.mesh import MESH_DIMS, Mesh
from fxpar.plancheck import BALANCED, CHECKS, NESTED
from fxpar.schedule import SCHEDULES
from fxpar.settings import Given
from fxpar.yamlfile import Node, Plain

#: What one axis is divided over: a mesh dim, several in order, or none. `tp?` where an instance may stay whole.
Split: TypeAlias = str | Sequence[str] | None


@dataclass(frozen=True)
class Plan:
    """How a model is split over a mesh, and how it runs.

    `tp`, `pp`, `dp`, `cp`, `ep` are the sizes of the mesh dims (ranks), `vpp` the stages of each `pp` rank.
    `sequence_parallel` chooses the default table of splits, `splits` replaces and extends its rows by axis.
    `schedule` and `microbatches` of None are chosen by `resolve`; `cut` is `{"at": [module paths]}`, `{"layers": [a
    number a stage]}`, or None for balanced stages (`"balanced"` is another word for that); `rules` are further folders
    of rules, relative to the working directory; `opaque` are paths or patterns of modules that no graph can follow, and
    that stay whole (`blocks.*.experts`); `seed` starts every random number.
    `dynamic` are the axes of the inputs whose sizes may differ from call to call (`["batch", "sequence"]`).

    Raises PlanError (several as Violations) for values that are wrong, and for what is not built yet.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    vpp: int = 1
    sequence_parallel: bool = True
    schedule: str | None = None
    microbatches: int | None = None
    cut: Mapping[str, Sequence[str] | Sequence[int]] | str | None = None
    splits: Mapping[str, Split] | None = None
    rules: Sequence[str] | None = None
    opaque: Sequence[str] | None = None
    seed: int = 0
    dynamic: Sequence[str] | None = None
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)
    """Where each setting was given, by its path (`tp`, `splits.heads`)."""

    def __post_init__(self) -> None:
        raise_all([error for key, check in CHECKS.items() for error in check(self.node(key))])
        raise_all(self._mismatches())
        rows = self.node("splits").mapping() if self.splits else {}
        self._normalise("splits", {axis: _simplest(row.plain()) for axis, row in rows.items()} or None)
        cuts = self.node("cut").mapping() if self.cut and self.cut != BALANCED else {}
        self._normalise("cut", {how: row.plain() for how, row in cuts.items()} or None)
        if "at" in cuts:
            self._normalise("cut", {"at": [path.text() for path in cuts["at"].one_or_more()]})
        for key in ("rules", "opaque", "dynamic"):
            texts = self.node(key).one_or_more() if getattr(self, key) else ()
            self._normalise(key, [text.text() for text in texts] or None)

    def _normalise(self, key: str, value: Plain) -> None:
        object.__setattr__(self, key, value)

    def node(self, key: str) -> Node:
        """Return a setting with its places."""
        return settings.node(getattr(self, key), key, self.places)

    def place(self, path: str) -> Place:
        """Return where a setting was given: a position in a file, an option, or `Plan(tp=...)`.

        `cut.at` is where cuts are asked for, also where they are in `cut.layers`.
        """
        if path == "cut.at" and isinstance(self.cut, Mapping):
            path = f"cut.{next(iter(self.cut))}"
        return settings.node(None, path, self.places).place

    def _mismatches(self) -> list[PlanError]:
        """What is wrong with a schedule and its number of stages a rank, each being right by itself."""
        errors = []
        if self.vpp > 1 and self.pp == 1:
            what = f"vpp = {self.vpp} stages a rank need several ranks along pp"
            errors.append(PlanError(what, place=self.place("vpp"), details=["--pp 2, or leave vpp at 1"]))
        schedule = SCHEDULES[self.schedule] if self.schedule else None
        if schedule is not None and self.pp > 1 and (wanted := schedule.misfit(self.vpp)):
            fitting = ", ".join(name for name, each in SCHEDULES.items() if not each.misfit(self.vpp))
            errors.append(
                PlanError(
                    f"schedule {schedule.name} wants {wanted}, and vpp is {self.vpp}",
                    place=self.place("schedule"),
                    details=[f"vpp = {schedule.least} would do", f"with vpp = {self.vpp}: {fitting}"],
                )
            )
        return errors

    @property
    def stages(self) -> int:
        """The number of stages that the model is cut into."""
        return self.pp * self.vpp

    @property
    def mesh(self) -> Mesh:
        """The mesh, with all of its dims."""
        return Mesh({dim: getattr(self, dim) for dim in MESH_DIMS})

    @property
    def parts(self) -> int:
        """The number of ranks, times that of microbatches."""
        return self.mesh.world * (self.microbatches or 1)

    @property
    def cut_at(self) -> Sequence[str] | Sequence[int]:
        """The paths of the modules that begin a stage, or each stage's number of layers; empty for balanced stages."""
        return next(iter(self.cut.values())) if isinstance(self.cut, Mapping) else ()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Plan:
        """Read a plan from a file. Raises PlanError, with positions in the file, for all that is wrong in it."""
        node = yamlfile.load(Path(path), PlanError)
        return cls().given(node) if node.value is not None else cls()

    def given(self, node: Node) -> Plan:
        """Return this plan with the settings of a mapping in place of its own. Raises PlanError as `from_yaml`."""
        errors: list[FxparError] = []
        values: dict[str, Any] = {}
        places = dict(self.places)
        read = node.mapping()
        for key, value in read.items():
            if key not in CHECKS:
                at = read.keys_at[key]
                errors.append(at.wrong(f"unknown key `{key}`", *yamlfile.suggest(key, CHECKS)))
                continue
            values[key] = value.plain()
            places = _without(places, key) | dict(settings.places(value, key))
        plan = self
        try:
            plan = replace(self, **values, places=places)
        except PlanError as error:
            errors += error.errors if isinstance(error, Violations) else [error]
        raise_all(sorted(errors, key=_line))
        return plan

    def override(self, assignments: Iterable[str]) -> Plan:
        """Return this plan with settings like `tp=4`, `splits.heads=tp` or `cut.at=[a, b]` in place of its own.

        Values are written as in YAML. Raises PlanError, naming the option, for all that are wrong.
        """
        plan = self
        errors: list[FxparError] = []
        for text in assignments:
            try:
                plan = plan._set(text)
            except PlanError as error:
                errors += error.errors if isinstance(error, Violations) else [error]
        raise_all(errors)
        return plan

    def _set(self, text: str) -> Plan:
        place = Given(f"--set {text}")
        path, equals, word = text.partition("=")
        key, dot, part = path.partition(".")
        if not equals:
            raise PlanError("wants KEY=VALUE", place=place)
        if key not in (NESTED if dot else CHECKS):
            known = [*CHECKS, *(f"{outer}.{inner}" for outer, parts in NESTED.items() for inner in parts)]
            raise PlanError(f"unknown key `{path}`", place=place, details=yamlfile.suggest(path, known))
        value: Any = _parsed(word, place)
        if key == "cut" and dot:  # its parts exclude each other
            value, path = {part: value}, key
        elif dot:
            value = {**(getattr(self, key) or {}), part: value}
        places = _without(self.places, path) | {path: place}
        return replace(self, **{key: value}, places=places)

    def to_yaml(self) -> str:
        """Write the plan with every default written out. Equal plans give equal bytes; `from_yaml` reads them back."""
        return settings.dump({key: getattr(self, key) for key in CHECKS})

    def resolve(self, batch_size: int, uneven: bool = False) -> Plan:
        """Return this plan with a schedule, and a number of microbatches for the batch of one step on a rank.

        The schedule is 1f1b, or interleaved-1f1b with several stages a rank. The number is 1 without pipelining, else
        the largest divisor of the batch up to twice the ranks along pp, and at least as many as these where the batch
        has that many samples. Raises PlanError where a given number does not divide and, if microbatches may be
        `uneven`, where there are fewer samples.
        """
        plan = self
        if self.schedule is None:
            plan = replace(self, schedule="interleaved-1f1b" if self.vpp > 1 else "1f1b")
        local = max(1, batch_size // (self.dp * self.ep))
        divisors = [n for n in range(1, local + 1) if local % n == 0]
        if self.microbatches is not None:
            if local % self.microbatches and not (uneven and self.microbatches < local):
                raise PlanError(
                    f"{self.microbatches} microbatches do not divide a batch of {local} samples on a rank",
                    place=self.place("microbatches"),
                    details=[f"microbatches may be {_either(divisors)}"],
                )
            return plan
        if self.pp == 1:
            return replace(plan, microbatches=1)
        few = [n for n in divisors if n <= 2 * self.pp]
        many = [n for n in divisors if n >= self.pp]
        return replace(plan, microbatches=few[-1] if few[-1] >= self.pp or not many else many[0])


def _line(error: FxparError) -> int:
    return error.place.line if error.place else 0


def _simplest(row: Plain) -> Plain:
    """One spelling for each row: nothing, a mesh dim, or a list of several."""
    if not isinstance(row, list):
        return row
    return row[0] if len(row) == 1 else row or None


def _without(places: Mapping[str, Place], path: str) -> dict[str, Place]:
    """The places of all settings but that one and its parts."""
    return {key: place for key, place in places.items() if not f"{key}.".startswith(f"{path}.")}


def _parsed(word: str, place: Place) -> Plain:
    """The value of an option, written as in YAML."""
    try:
        return yamlfile.parse(word, str(place), PlanError).plain()
    except PlanError as error:
        raise PlanError(error.what, place=place) from None


def _either(numbers: Sequence[int]) -> str:
    """Numbers as a choice: `1, 2 or 4`."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last
