"""What the real processes of the tests run; beside the tests, so that a new process can import it."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pipeline_models import assert_same, batch, case

from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups
from fxpar.runtime.pipeline import Pipeline
from fxpar.runtime.processes import connect

#: The models, and where they are cut; the first stage of the frozen one learns nothing.
CUTS = {"gpt": [], "t5": [], "frozen": ["layers.0"]}

STAGES, MICROBATCHES = 2, 4
BATCHES = [batch(seed) for seed in range(MICROBATCHES)]


def start(store: str) -> None:
    """Run `compare` in as many processes as there are stages, with a gloo group."""
    mp.spawn(_enter, args=(store,), nprocs=STAGES, join=True)


def _enter(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=STAGES)
    groups = connect(Mesh({"pp": STAGES}), ["pp", "pp[0,1]"], device="cpu", timeout=60)
    for name in CUTS:
        for schedule in ("gpipe", "1f1b"):
            compare(name, schedule, groups)
    groups.close()
    dist.destroy_process_group()


def compare(name: str, schedule: str, groups: Groups) -> None:
    """Two steps and evaluations give the loss, outputs and gradients of the whole model."""
    subject = case(name)
    stages = subject.stages(STAGES, CUTS[name])
    stage, module = stages[groups.rank], subject.modules(stages)[groups.rank]
    pipeline = Pipeline(module, stage.spec(), groups, schedule=schedule)
    inputs = [subject.flat(one) for one in BATCHES]
    for count in (MICROBATCHES, 1, MICROBATCHES):
        loss, gradients = subject.whole(BATCHES[:count])
        module.zero_grad()
        found, outputs = pipeline.step(inputs[:count], everywhere=True)
        pipeline.sum_shared_gradients()
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
        assert_same(
            dict(_gradients(module)), {key: gradients[key] for key in stage.parameters() if key in gradients}
        )
        evaluated, again = pipeline.evaluate(inputs[:count])
        assert (outputs is None) == (again is None) == (evaluated is None) == (not stage.spec().is_last)
        for one, other in zip(outputs or (), again or ()):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def _gradients(module: torch.nn.Module):
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
