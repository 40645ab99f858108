"""Pipelines of real models in the simulator: the whole model's loss and gradients, by every schedule."""

from __future__ import annotations

import pytest
import torch
from pipeline_models import assert_same, batch, case, piped

from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import simulate
from fxpar.schedule import SCHEDULES

BATCHES = [batch(seed) for seed in range(7)]


@pytest.mark.parametrize("microbatches", [1, 4, 7])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["gpt", "t5", "frozen"])
def test_step(name: str, schedule: str, ranks: int, microbatches: int) -> None:
    subject, batches = case(name), BATCHES[:microbatches]
    virtual = SCHEDULES[schedule].least

    def rank(_: int, groups: Groups):
        made = piped(subject, groups, schedule, virtual)
        loss, outputs = made.pipeline.step([subject.flat(one) for one in batches], everywhere=True)
        again, _ = made.pipeline.evaluate([subject.flat(one) for one in batches], everywhere=True)
        return made.parameters, loss, again, outputs, made.gradients()

    results = simulate(Mesh({"pp": ranks}), rank)
    loss, gradients = subject.whole(batches)
    for parameters, found, again, _, got in results:
        torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again, loss, rtol=1e-12, atol=1e-12)
        assert_same(got, {key: gradients[key] for key in parameters if key in gradients})
    last = ranks - 1 if SCHEDULES[schedule].map == "loop" else 0
    assert [outputs is not None for _, _, _, outputs, _ in results] == [r == last for r in range(ranks)]


def test_a_tensor_of_two_stages_on_one_rank_is_one() -> None:
    """The V brings the head to the rank of the embedding that it is tied to."""

    def rank(_: int, groups: Groups):
        made = piped(case("gpt"), groups, "zb-v", 2)
        return [stage.shared for stage in made.stages], dict(
            made.root.named_parameters(remove_duplicate=False)
        )

    (shared, parameters), (others, _) = simulate(Mesh({"pp": 2}), rank)
    assert [*shared, *others] == [{}] * 4
    assert list(parameters).count("tokens.weight") == 1
