"""The rules: those that fxpar ships, those of installed packages, and those of folders that the user names.

    rules/
      axes.yaml                     names of axes
      ops/*.yaml                    how each op splits
      composites/*.yaml             several ops that are one thing
      fusions/*.yaml                several ops that one op computes
      splits/default.yaml           which axis goes over which mesh dims
      splits/whole_sequence.yaml    the same without sequence parallelism

Folders are read in this order: the built-in one, those of the entry points in the group `fxpar.rules` by name, those of
the plan, those of `--rules`. A later folder replaces ops and rows of splits, and its names of axes are asked first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from fxpar import yamlfile
from fxpar.axes import composite, naming, oprule
from fxpar.errors import FxparError, Place, PlanError, RuleError, raise_all
from fxpar.plan import Plan
from fxpar.plancheck import SPLIT_DIMS
from fxpar.shard import fusion
from fxpar.shard import table as splits

#: The group of entry points. Each names a package with rules in its folder, or an attribute that is a folder's path.
GROUP = "fxpar.rules"
#: The files of a folder of rules.
KNOWN = (
    "axes.yaml",
    "ops/*.yaml",
    "composites/*.yaml",
    "fusions/*.yaml",
    "splits/default.yaml",
    "splits/whole_sequence.yaml",
)


@dataclass(frozen=True)
class Rulebook:
    """The rules of all folders together."""

    ops: dict[str, oprule.OpRule]
    names: list[naming.NamingRule]
    folders: tuple[Path, ...]
    composites: list[composite.Composite]
    fusions: list[fusion.Fusion]

    @classmethod
    def load(cls, extra_dirs: Iterable[str | Path] = (), plan: Plan | None = None) -> Rulebook:
        """Read the rules of all folders; `extra_dirs` come last, after the folders that the plan names.

        Raises RuleError (several as Violations) for folders that are none, and for the first malformed file.
        """
        named = (
            {str(folder): plan.place(f"rules.{i}") for i, folder in enumerate(plan.rules or ())}
            if plan
            else {}
        )
        further = [*_installed(), *named, *map(str, extra_dirs)]
        raise_all([error for folder in further for error in _wrong_with(folder, named.get(folder))])
        folders = (built_in(), *(Path(folder) for folder in dict.fromkeys(further)))
        return cls(
            oprule.load(folders),
            naming.load(folders),
            folders,
            composite.load(folders),
            fusion.load(folders),
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that some rule names, in the order of the rules."""
        return tuple(dict.fromkeys(rule.axis for rule in self.names))

    def table(self, plan: Plan) -> dict[str, splits.Row]:
        """The table of splits of a plan: the default rows, each replaced where the plan has one, then its further rows.

        Raises PlanError (several as Violations) for rows whose axis no rule names.
        """
        rows = self.default_table(plan.sequence_parallel)
        if not plan.splits:
            return rows
        own = plan.node("splits")
        raise_all([self._unknown_axis(axis, plan) for axis in plan.splits if axis not in self.axes])
        return rows | splits.read(own, self.axes, SPLIT_DIMS)

    def default_table(self, sequence_parallel: bool = True) -> dict[str, splits.Row]:
        """The table of splits that holds where the plan says nothing. Raises RuleError where it is malformed."""
        rows: dict[str, splits.Row] = {}
        name = "default.yaml" if sequence_parallel else "whole_sequence.yaml"
        for folder in self.folders:
            path = folder / "splits" / name
            if path.is_file():
                node = yamlfile.load(path, RuleError, f"{folder.name}/splits/{name}")
                rows |= splits.read(node, self.axes, SPLIT_DIMS)
        return rows

    def written_out(self, plan: Plan) -> Plan:
        """The plan with the whole table of splits as its own, which means the same wherever it is read again."""
        return replace(plan, splits={axis: _words(row) for axis, row in self.table(plan).items()})

    def _unknown_axis(self, axis: str, plan: Plan) -> FxparError:
        details = yamlfile.suggest(axis, self.axes)
        return PlanError(
            f"no rule names an axis `{axis}`", place=plan.place(f"splits.{axis}"), details=details
        )


def built_in() -> Path:
    """The folder of rules that fxpar ships: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "rules"
    return inside if inside.is_dir() else package.parent / "rules"


def _words(row: splits.Row) -> list[str]:
    return list(row.words.values())


def _installed() -> list[str]:
    """The folders of installed packages, sorted by the name of their entry point."""
    return [_folder_of(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]


def _folder_of(entry: EntryPoint) -> str:
    """The folder that an entry point means. Raises RuleError where it cannot be loaded, or is none."""
    try:
        value = entry.load()
    except (ImportError, AttributeError) as error:
        raise RuleError(f"entry point `{entry.name}` of `{GROUP}` cannot be loaded: {error}") from error
    if isinstance(value, ModuleType) and getattr(value, "__path__", None):
        return str(next(iter(value.__path__)))
    if isinstance(value, str | Path):
        return str(value)
    raise RuleError(
        f"entry point `{entry.name}` of `{GROUP}` is `{entry.value}`, which is no folder",
        details=[
            "it may be a package with the rules in its folder, or an attribute that is the folder's path"
        ],
    )


def _wrong_with(folder: str, place: Place | None) -> list[FxparError]:
    """Everything in a folder that would be taken to mean nothing."""
    path = Path(folder)
    if not path.is_dir():
        return [RuleError(f"there is no folder of rules `{folder}`", place=place)]
    known = {file for pattern in KNOWN for file in path.glob(pattern)}
    found = sorted(file for ending in ("*.yaml", "*.yml") for file in path.rglob(ending))
    details = [f"files of rules are {', '.join(KNOWN)}"]
    if not known:
        return [RuleError(f"folder `{folder}` has no file of rules", place=place, details=details)]
    strange = [file.relative_to(path).as_posix() for file in found if file not in known]
    return [
        RuleError(f"`{name}` in `{folder}` is no file of rules", place=place, details=details)
        for name in strange
    ]
