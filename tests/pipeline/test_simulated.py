"""Pipelines of real models in the simulator: the whole model's loss and gradients over several microbatches."""

from __future__ import annotations

import pytest
import torch
from pipeline_models import assert_same, batch, case

from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.pipeline import Pipeline

BATCHES = [batch(seed) for seed in range(4)]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("name", "count"), [("gpt", 3), ("t5", 4), ("llama", 2)])
def test_step(name: str, count: int, schedule: str) -> None:
    subject = case(name)
    stages = subject.stages(count)
    modules = subject.modules(stages)

    def rank(index: int, groups: Groups) -> torch.Tensor | None:
        pipeline = Pipeline(modules[index], stages[index].spec(), groups, schedule=schedule)
        loss, _ = pipeline.step([subject.flat(one) for one in BATCHES], everywhere=True)
        pipeline.sum_shared_gradients()
        return loss

    losses = simulate(Mesh({"pp": count}), rank)
    loss, gradients = subject.whole(BATCHES)
    for stage, module, found in zip(stages, modules, losses):
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
        got = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
        assert_same(got, {key: gradients[key] for key in stage.parameters() if key in gradients})
