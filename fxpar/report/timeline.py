"""A drawing of a run of a pipeline: a row for each rank, in it a box for each run, with its microbatch's number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import floor, log10

from fxpar.pipeline.events import Event, lanes
from fxpar.pipeline.orders import BACKWARD, COMPUTATIONS, FORWARD, INPUT, WEIGHT
from fxpar.pipeline.usage import Usage, usage
from fxpar.report.number import amount, count, percent
from fxpar.report.svg import INK, PAPER, Drawing

HUES = {FORWARD: "#2f6db5", BACKWARD: "#2e8b57", INPUT: "#d9741a", WEIGHT: "#7d52a8"}
NAMES = {
    FORWARD: "F forward",
    BACKWARD: "B backward",
    INPUT: "I backward for inputs",
    WEIGHT: "W backward for parameters",
}
IDLE, QUIET = "#ececec", "#666666"
#: Pixels: the row of a rank and what is between two, what stands on the left and on the right of them, and above.
ROW, GAP, LEFT, RIGHT, TOP = 28, 6, 64, 176, 62
#: How wide the rows are at least and at most, and a run that three quarters of all are at least as long as.
NARROWEST, WIDEST, SHORT = 480, 12000, 18
#: How wide a digit is, and what is free on the sides of a number.
DIGIT, FREE = 6, 3


def timeline(events: Sequence[Event], title: str, unit: str = "") -> Drawing:
    """Draw the runs of all ranks over time. `unit` is the unit of the events' times; transfers are not drawn."""
    runs = [event for event in events if event.action.kind in COMPUTATIONS]
    used = usage(runs)
    first = min((run.start for run in runs), default=0)
    span = float(used.makespan) or 1.0
    scale = _width(runs, span) / span
    kinds = [kind for kind in NAMES if any(run.action.kind == kind for run in runs)]
    chunks = _chunks(runs)
    width = max(LEFT + span * scale + RIGHT, 2 * LEFT + sum(map(len, title)) * 7)
    bottom = TOP + len(used.ranks) * (ROW + GAP)
    drawing = Drawing(round(width, 2), bottom + 44 + 20 * len(kinds))
    drawing.words(12, 22, title, size=14, anchor="start", bold=True)
    drawing.words(12, 42, caption(used), anchor="start", fill=QUIET)
    for index, rank in enumerate(used.ranks):
        top = TOP + index * (ROW + GAP)
        drawing.words(12, top + ROW / 2 + 4, f"rank {rank.rank}", anchor="start")
        drawing.rect(LEFT, top, _rounded(span * scale), ROW, IDLE, "none")
        mine = sorted((run for run in runs if run.rank == rank.rank), key=lambda run: (run.start, run.end))
        for run, lane, parts in _laid(mine):
            left, right = (LEFT + float(time - first) * scale for time in (run.start, run.end))
            fill = shade(run.action.kind, *chunks[run.action.stage])
            _box(drawing, run, (left, right), (top + lane * ROW / parts, ROW / parts), fill)
        right, line = LEFT + span * scale, top + ROW / 2 + 4
        drawing.words(_rounded(right + 10), line, f"idle {percent(rank.idle_of_makespan)}", anchor="start")
        drawing.words(_rounded(right + 90), line, f"live {count(rank.live)}", anchor="start")
    _axis(drawing, bottom + 4, span, scale, unit)
    _legend(drawing, bottom + 46, kinds, max((of for _, of in chunks.values()), default=1))
    return drawing


def caption(used: Usage) -> str:
    """The idle time of all ranks by both conventions, and the largest peak of live activations."""
    work, makespan = percent(used.idle_of_work), percent(used.idle_of_makespan)
    idle = f"idle: {work} of the work, {makespan} of the makespan"
    return f"{idle}; live activations: at most {count(used.live)} microbatches a rank"


def shade(kind: str, chunk: int, chunks: int) -> str:
    """The colour of a run: the hue of its kind, the lighter the later the rank's stage is in the model."""
    hue = HUES[kind]
    light = 0.6 * chunk / max(1, chunks - 1)
    parts = (int(hue[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * light):02x}" for part in parts)


def _width(runs: Sequence[Event], span: float) -> float:
    """How wide the rows are, in pixels."""
    lengths = sorted(float(run.end - run.start) for run in runs if run.end > run.start)
    short = lengths[len(lengths) // 4] if lengths else span
    return min(max(NARROWEST, SHORT * span / short), WIDEST)


def _chunks(runs: Sequence[Event]) -> Mapping[int, tuple[int, int]]:
    """For each stage the how many-th of its rank it is, and of how many."""
    stages: dict[int, set[int]] = {}
    for run in runs:
        stages.setdefault(run.rank, set()).add(run.action.stage)
    return {stage: (index, len(mine)) for mine in stages.values() for index, stage in enumerate(sorted(mine))}


def _laid(runs: Sequence[Event]) -> Iterator[tuple[Event, int, int]]:
    """The runs of a rank, and where in its row each stands: those at the same time share its height."""
    together: list[Event] = []
    for run in [*runs, None]:
        if together and (run is None or run.start >= max(other.end for other in together)):
            rows = lanes(together)
            yield from ((each, index, len(rows)) for index, row in enumerate(rows) for each in row)
            together = []
        if run is not None:
            together.append(run)


def _box(
    drawing: Drawing, run: Event, across: tuple[float, float], down: tuple[float, float], fill: str
) -> None:
    (left, right), (top, height) = across, down
    width = right - left
    drawing.rect(_rounded(left), top, _rounded(width), height, fill, PAPER if width > 2 else "none")
    number = str(run.action.microbatch)
    if width >= DIGIT * len(number) + 2 * FREE:
        ink = PAPER if _dark(fill) else INK
        drawing.words(_rounded((left + right) / 2), top + height / 2 + 3.5, number, size=10, fill=ink)


def _axis(drawing: Drawing, top: float, span: float, scale: float, unit: str) -> None:
    """The time below the rows, at round numbers that are at least 60 pixels apart."""
    least = 60 / scale
    power = 10.0 ** floor(log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
    end = _rounded(LEFT + span * scale)
    drawing.line((LEFT, top), (end, top))
    for index in range(int(span / step) + 1):
        at = _rounded(LEFT + index * step * scale)
        drawing.line((at, top), (at, top + 4))
        drawing.words(at, top + 16, amount(index * step), size=10, fill=QUIET)
    drawing.words(end + 24, top + 16, f"time{unit and f', {unit}'}", size=10, anchor="start", fill=QUIET)


def _legend(drawing: Drawing, top: float, kinds: Sequence[str], chunks: int) -> None:
    """A line for each kind of run, with a box for each of a rank's stages."""
    for index, kind in enumerate(kinds):
        y = top + 20 * index - 12
        for chunk in range(chunks):
            drawing.rect(LEFT + 18 * chunk, y, 16, 14, shade(kind, chunk, chunks), "none")
        stages = "; a rank's stages from first to last" if chunks > 1 else ""
        drawing.words(LEFT + 18 * chunks + 6, y + 11, NAMES[kind] + stages, anchor="start")


def _dark(colour: str) -> bool:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 150


def _rounded(pixels: float) -> float:
    return round(pixels, 2)
