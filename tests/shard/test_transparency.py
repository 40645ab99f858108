"""A split model computes what the whole one does: outputs and every gradient of every rank, in float64."""

from __future__ import annotations

import pytest
from shard_models import case

LOSS_AND_GRADIENTS = 1e-9

#: The meshes; `whole` is the table without sequence parallelism.
FULL = ["tp2", "tp4", "tp2 whole", "tp4 whole", "cp2", "cp4", "cp2 tp2", "dp2 tp2", "dp2 cp2 tp2"]
SHORT = ["tp2", "tp4", "tp2 whole", "tp4 whole", "cp2 tp2", "dp2 cp2 tp2"]
RARE = ["tp2", "tp4 whole", "cp2", "dp2 cp2 tp2"]
MESHES = {
    "llama": FULL,
    "bert": FULL,
    "nanogpt": SHORT,
    "gpt2": SHORT,
    "phi3": SHORT,
    "t5": RARE,
    "encoder": RARE,
    "perceptron": ["tp2", "dp4", "dp2 tp2"],
}


@pytest.mark.parametrize(
    ("name", "mesh"), [(name, mesh) for name, meshes in MESHES.items() for mesh in meshes]
)
def test_outputs_and_gradients(name: str, mesh: str) -> None:
    table = "whole_sequence" if mesh.endswith("whole") else "default"
    run = case(name).check(mesh.removesuffix(" whole"), table)
    assert run.error < LOSS_AND_GRADIENTS, str(run)
    assert run.sharded.fraction > 0.8 or "tp" not in mesh


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bert", "nanogpt"])
def test_a_mesh_of_one_rank_inserts_nothing(name: str) -> None:
    sharded = case(name).shard("dp1 cp1 tp1")
    assert not [node for node in sharded.graph.nodes if str(node.target).startswith("fxpar.")]
    assert all(not laid.split_over and not laid.reduce for laid in sharded.tensors.values())
