"""Experts: their inner dim is split like that of a feed-forward, and no token is moved for it."""

from __future__ import annotations

from collections import Counter

import pytest
from shard_case import Run
from shard_experts import PUBLIC, case

EXACT = 1e-9
MESHES = ["tp2", "tp4", "tp2 whole", "cp2", "cp2 tp2", "dp2 tp2"]
OWN = ["modules", "bmm", "einsum", "dispatched", "alternating"]


def inserted(run: Run) -> Counter[str]:
    """The collectives of the graph by kind; slices cost nothing."""
    names = [str(node.target) for node in run.sharded.graph.nodes]
    moves = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "sum_gradient")
    return Counter(
        name.split(".")[1] for name in names if name.startswith("fxpar.") and name.split(".")[1] in moves
    )


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", PUBLIC)
def test_public_models(name: str, mesh: str) -> None:
    run = case(name).check(mesh.removesuffix(" whole"), "whole_sequence" if "whole" in mesh else "default")
    assert run.error < EXACT, str(run)
    assert run.sharded.fraction >= 0.9 or "tp" not in mesh


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2"])
@pytest.mark.parametrize("name", OWN)
def test_experts_written_by_hand(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.fraction > 0.95


@pytest.mark.parametrize("name", ["selected", "shared", "interleaved"])
def test_a_layer_has_the_collectives_of_a_dense_one(name: str) -> None:
    """Two layers with attention and experts, the embedding's reduction and the gathering for the head."""
    assert inserted(case(name).check("tp2")) == Counter(all_gather=5, reduce_scatter=5)
    assert inserted(case(name).check("tp2", "whole_sequence")) == Counter(all_reduce=5, sum_gradient=5)


def test_every_rank_runs_the_router_on_what_is_gathered_for_the_experts() -> None:
    tensors = case("selected").shard("tp2").tensors
    assert tensors["model.layers.0.mlp.gate.weight"].reduce == ("tp",)
    experts = {n: t for n, t in tensors.items() if "experts" in n}
    assert {n.rsplit(".", 1)[1]: t.words for n, t in experts.items()} == {
        "gate_up_proj": ("experts", "cat[ffn, ffn]", "hidden"),
        "down_proj": ("experts", "hidden", "ffn"),
    }
    assert all(t.reduce == () and t.split_over == ("tp",) for t in experts.values())


def test_the_bias_of_a_selected_expert_is_added_once() -> None:
    run = case("interleaved").check("tp2")
    once = [n for n in run.sharded.graph.nodes if str(n.target).startswith("fxpar.keep_on_first")]
    rows = [next(iter(node.all_input_nodes)) for node in once]
    biases = {next(iter([*row.all_input_nodes, row])).meta["name"] for row in rows}
    assert "model.layers.0.mlp.experts.down_proj_bias" in biases
    laid = run.sharded.tensors
    assert laid["model.layers.0.mlp.experts.down_proj_bias"].reduce == ()
    assert laid["model.layers.0.mlp.experts.gate_up_proj_bias"].words[1] == "(ffn 2)"
