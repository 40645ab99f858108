"""Experts: their inner dim is split like that of a feed-forward, and no token is moved for it."""

from __future__ import annotations

from collections import Counter

import pytest
from shard_case import Run
from shard_experts import PUBLIC, auxiliary, case, grouped, inputs, public, single

import fxpar
from fxpar.capture.precision import Float64
from fxpar.errors import ShardError
from fxpar.passes import split

EXACT, SINGLE = 1e-9, 1e-4
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


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2", "dp2 tp2"])
@pytest.mark.parametrize("name", PUBLIC)
def test_grouped_products(name: str, mesh: str) -> None:
    """What sorts all tokens by their experts is split like what does not, and moves as little."""
    run = grouped(name).check(mesh)
    assert run.error < EXACT, str(run)
    assert inserted(run) == inserted(case(name).check(mesh))
    assert run.sharded.fraction == case(name).shard(mesh).fraction


@pytest.mark.parametrize("name", PUBLIC)
def test_the_kernel_that_models_have_by_default(name: str) -> None:
    run = single(name).check("cp2 tp2")
    assert run.error < SINGLE, str(run)
    assert any(str(node.target) == "fxpar.expert_linear.default" for node in run.sharded.graph.nodes)


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


@pytest.mark.parametrize("name", PUBLIC)
def test_stages_and_microbatches(name: str) -> None:
    """The folder's modules, also where tokens are sorted: no sample is mixed with another."""
    plan = fxpar.Plan(tp=2, pp=2, microbatches=2)
    with Float64():
        report = fxpar.verify(public(name).double(), kwargs=inputs(), plan=plan, simulate=True)
    assert max(report.loss_error, report.gradient_error, report.parameter_error) < EXACT
    model = public(name, experts_implementation=None)
    report = fxpar.verify(model, kwargs=inputs(), plan=plan, simulate=True)
    assert max(report.loss_error, report.gradient_error) < SINGLE


@pytest.mark.parametrize("mesh", ["tp2", "cp2 tp2", "dp2"])
@pytest.mark.parametrize("name", ["selected", "shared"])
def test_the_auxiliary_loss_is_that_of_all_tokens(name: str, mesh: str) -> None:
    run = auxiliary(name).check(mesh)
    assert run.error < EXACT, str(run)


def test_an_auxiliary_loss_of_the_whole_batch_is_refused_in_microbatches() -> None:
    with pytest.raises(ShardError) as error:
        split(auxiliary("selected").program, fxpar.Plan(pp=2, microbatches=2))
    what, where, remedy = str(error.value).splitlines()
    assert what == "microbatches mix at `aten.histc.default`: it needs the whole batch"
    assert where.startswith("  the model (modeling_mixtral.py:")
    assert remedy == "  use one microbatch"
