"""Draw the pictures of the documentation from partitions of examples/nanogpt.py, and from simulated schedules:

python tools/draw.py [FOLDER]

Each is made of what a partition says of itself: the table, the blocks that ranks hold, and the graphs of the stages;
timelines are those of `fxpar schedule`.
FOLDER is docs/pictures unless another one is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lanes
import matrices

import fxpar
from fxpar.api import partition
from fxpar.report.costs import uniform
from fxpar.report.pipeline import Pipeline
from fxpar.report.svg import Drawing
from fxpar.report.timeline import timeline

ROOT = Path(__file__).parents[1]
MODEL = f"{ROOT / 'examples' / 'nanogpt.py'}:build"


def draw(folder: Path) -> None:
    """Write every picture."""
    two = partition(MODEL, fxpar.Plan(tp=2, pp=2))
    one = partition(MODEL, fxpar.Plan(tp=2))
    whole = partition(MODEL, fxpar.Plan(tp=2, sequence_parallel=False))
    pictures = {
        "axes": matrices.axes(one),
        "fused": matrices.fused(one),
        "stages": lanes.stages(two),
        "sequence": lanes.sequence(whole, one),
        "timeline": simulated(Pipeline("1f1b", 4, 1, 8)),
        "timeline_zb_v": simulated(Pipeline("zb-v", 4, 2, 8)),
    }
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture.text(), encoding="utf-8")


def simulated(pipeline: Pipeline) -> Drawing:
    """A step in which every run takes one unit."""
    costs = uniform(pipeline.ranks * pipeline.virtual)
    return timeline(pipeline.simulated(costs.times), pipeline.title, costs.unit)


if __name__ == "__main__":
    draw(Path(*(sys.argv[1:2] or [ROOT / "docs" / "pictures"])))
