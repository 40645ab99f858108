"""What the real processes of the tests run; beside the tests, so that a new process can import it."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pipeline_models import Piped, assert_same, batch, case, piped

from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups
from fxpar.runtime.localengine import LocalEngine
from fxpar.runtime.processes import connect
from fxpar.schedule import SCHEDULES

#: The models, and where they are cut; the first stage of the frozen one learns nothing.
CUTS = {"gpt": [], "t5": [], "frozen": ["layers.0"]}

BATCHES = [batch(seed) for seed in range(5)]


def start(store: str, ranks: int) -> None:
    """Run `compare` in some processes, with a gloo group."""
    mp.spawn(_enter, args=(store, ranks), nprocs=ranks, join=True)


def _enter(rank: int, store: str, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    holders = (each for size in range(2, ranks + 1) for each in combinations(range(ranks), size))
    several = [f"pp[{','.join(map(str, each))}]" for each in holders]
    groups = connect(Mesh({"pp": ranks}), ["pp", *several], device="cpu", timeout=60)
    for name, at in CUTS.items():
        for schedule, each in SCHEDULES.items():
            made = piped(case(name), groups, schedule, each.least, at if ranks * each.least == 2 else ())
            compare(name, made)
            assert_engines_agree(name, made, groups)
    groups.close()
    dist.destroy_process_group()


def compare(name: str, made: Piped) -> None:
    """Steps and evaluations give the loss, outputs and gradients of the whole model."""
    subject, pipeline = case(name), made.pipeline
    inputs = [subject.flat(one) for one in BATCHES]
    for count in (4, 1, 5, 4):
        loss, gradients = subject.whole(BATCHES[:count])
        made.root.zero_grad()
        found, outputs = pipeline.step(inputs[:count], everywhere=True)
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
        wanted = {key: gradients[key] for key in made.parameters if key in gradients}
        assert_same(made.gradients(), wanted)
        evaluated, again = pipeline.evaluate(inputs[:count])
        assert (outputs is None) == (again is None) == (evaluated is None) == (not pipeline.has_last)
        for one, other in zip(outputs or (), again or ()):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def assert_engines_agree(name: str, made: Piped, groups: Groups) -> None:
    """Our engine, with the processes' transport in place of the simulator's, gives torch's gradients bit for bit."""
    found = []
    for ours in (False, True):
        if ours:
            made.pipeline._engine = LocalEngine(
                dict(zip((stage.index for stage in made.stages), made.modules)),
                groups.transport,
                made.pipeline._stages,
            )
        made.root.zero_grad()
        made.pipeline.step([case(name).flat(one) for one in BATCHES])
        found.append(made.gradients())
    one, other = found
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
