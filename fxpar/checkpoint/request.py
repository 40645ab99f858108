"""The layout that somebody asks for: a mesh, a plan, that of another folder, or Hugging Face's. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fxpar.checkpoint.huggingface import MOST, huggingface, like
from fxpar.checkpoint.index import LAYOUT, NAME, Index
from fxpar.checkpoint.reshard import Report
from fxpar.checkpoint.target import target
from fxpar.errors import CheckpointError
from fxpar.schedule import SCHEDULES

SIZES = ("tp", "pp", "ep")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Request:
    """What is asked for: sizes of mesh dims, which go before those of a plan; stages of each `pp` rank.

    `plan` is a plan.yaml, of which the sizes and the rows of the table of splits are taken. `like` is a folder of
    fxpar's whose index says what is known of the tensors, for a source that says nothing. `hf` is Hugging Face's
    layout, with files of at most `most` bytes.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    virtual: int | None = None
    plan: Path | None = None
    like: Path | None = None
    hf: bool = False
    most: int = MOST

    def check(self) -> None:
        """Raise CheckpointError if nothing is asked for, or two things that exclude each other."""
        meshes = bool(self.sizes or self.virtual is not None or self.plan)
        if self.hf and (meshes or self.like):
            raise CheckpointError(
                "Hugging Face's layout has no mesh", details=["leave out --to hf, or the mesh"]
            )
        if not self.hf and not meshes and not self.like:
            raise CheckpointError(
                "no layout is asked for", details=["--tp 4 --pp 1, --plan FILE, --like DIR or --to hf"]
            )
        wrong = [f"{dim} = {size}" for dim, size in self.sizes.items() if size < 1]
        wrong += [f"vpp = {self.virtual}"] if self.virtual is not None and self.virtual < 1 else []
        if wrong:
            raise CheckpointError(f"sizes are at least 1: {', '.join(wrong)}")

    def target(self) -> Callable[[Index], Index]:
        """What gives the layout for the index of a source; reads the plan and the other folder. Raises FxparError."""
        self.check()
        if self.hf:
            return lambda index: huggingface(index, self.most)
        sizes, virtual, schedule, rows = self._mesh()
        layout = _layout(self.like) if self.like else None

        def made(index: Index) -> Index:
            if layout is not None:
                index = like(index, layout, str(self.like))
            mesh = sizes if sizes or layout is None else {d: s for d, s in layout.mesh.items() if d in SIZES}
            _check_stages(mesh.get("pp", 1), virtual, schedule)
            if not index.rows and any(mesh.get(dim, 1) > 1 for dim in SIZES):
                raise CheckpointError(
                    "nothing is known of the axes and layers of its tensors: it was not written by fxpar",
                    details=[
                        "--like DIR: a folder that `fxpar partition MODEL --no-weights -o DIR` wrote for its model"
                    ],
                )
            index = replace(index, rows={**index.rows, **rows}) if rows else index
            return target(index, mesh, virtual, schedule or "1f1b")

        return made

    def _mesh(self) -> tuple[dict[str, int], int, str | None, dict[str, tuple[str, ...]]]:
        """The sizes of mesh dims, the stages of each rank, the schedule, and rows of the table that a plan has."""
        if self.plan is None:
            return dict(self.sizes), self.virtual or 1, None, {}
        try:
            from fxpar.plan import Plan
        except ImportError as error:
            raise CheckpointError(
                f"a plan cannot be read: {error}",
                details=["install pyyaml, or give the sizes: --tp 4 --pp 1"],
            ) from error
        plan = Plan.from_yaml(self.plan)
        sizes = {dim: getattr(plan, dim) for dim in SIZES} | dict(self.sizes)
        rows = {
            axis: (over,) if isinstance(over, str) else tuple(over or ())
            for axis, over in (plan.splits or {}).items()
        }
        return sizes, self.virtual or plan.vpp, plan.schedule, rows


def _check_stages(ranks: int, virtual: int, schedule: str | None) -> None:
    """Raise CheckpointError for a number of stages a rank that the pipeline, or its schedule, cannot have."""
    if virtual > 1 and ranks == 1:
        raise CheckpointError(
            f"vpp = {virtual} stages a rank need several ranks along pp",
            details=["--pp 2, or leave vpp at 1"],
        )
    if schedule is not None and ranks > 1 and (wanted := SCHEDULES[schedule].misfit(virtual)):
        raise CheckpointError(
            f"schedule {schedule} of the plan wants {wanted}, and vpp is {virtual}",
            details=[f"vpp = {SCHEDULES[schedule].least} would do"],
        )


def _layout(folder: Path) -> Index:
    """The index of a folder of fxpar's, with weights or without."""
    for name in (NAME, LAYOUT):
        if (folder / name).is_file():
            return Index.read(folder / name)
    raise CheckpointError(f"{folder} has no {NAME} and no {LAYOUT}")


def size(text: str) -> int:
    """Bytes, of `5GB` or `500MB` or a number. Raises ValueError."""
    number = text.strip().upper().rstrip("BKMGT")
    unit = text.strip().upper()[len(number) :]
    if unit not in _UNITS or not number.strip().isdigit() or int(number) < 1:
        raise ValueError(f"`{text}` is no size such as 5GB")
    return int(number) * _UNITS[unit]


def said(report: Report, *, dry: bool) -> str:
    """What a reshard did, or would do, in a line."""
    verbs = ("would be read", "would be written") if dry else ("read", "written")
    resumed = f", {report.resumed} tiles of them before" if report.resumed else ""
    return (
        f"{report.tensors} tensors in {report.files} files: "
        f"{in_words(report.read)} {verbs[0]}, {in_words(report.written)} {verbs[1]}{resumed}"
    )


def stopped() -> str:
    """What is said of a reshard that somebody interrupted."""
    return "interrupted\n  --resume goes on from here"


def in_words(count: float) -> str:
    """Bytes for people: `512 B`, `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
