"""Mesh dims that are larger than the heads of keys and values: they fall into pieces, and nothing more is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from shard_case import Case, Run, rows
from shard_models import BATCH, LAYERS, LENGTH, WIDTH, causal, llama, tokens
from torch import Tensor, nn
from torch.nn import functional as F

import fxpar
from fxpar.errors import PlanError
from fxpar.mesh import Mesh
from fxpar.shard.pieces import names

EXACT = 1e-9
EACH = 2 * LAYERS + 1
#: The loss reduces the largest logit, then the sum of exponentials and the target's logit.
LOSS = 2
KEYS = [f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(LAYERS) for part in "kv"]


@cache
def grouped(heads: int) -> Case:
    """A decoder with 8 heads of queries that share some heads of keys and values."""
    torch.manual_seed(0)
    return Case(llama(num_key_value_heads=heads).double().train(), causal())


def inserted(run: Run) -> Counter[str]:
    """How many of each runtime op stand in the graph; local slices are left out."""
    found = [
        str(node.target).split(".")[1] for node in run.sharded.graph.nodes if "fxpar." in str(node.target)
    ]
    return Counter(name for name in found if name not in ("slice", "count_targets"))


def test_the_names_of_the_pieces() -> None:
    assert names("tp") == ("tp1", "tp2")


@pytest.mark.parametrize(("mesh", "sizes"), [("tp4", (2, 2)), ("tp8", (2, 4))])
@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_keys_and_values_are_replicated_over_the_second_piece(
    mesh: str, sizes: tuple[int, int], table: str
) -> None:
    run = grouped(2).check(mesh, table)
    assert run.error < EXACT, str(run)
    assert dict(run.sharded.mesh.sizes) == dict(zip(("tp1", "tp2"), sizes))
    for name in KEYS:
        laid = run.sharded.tensors[name]
        assert (laid.split_over, laid.reduce, laid.local_shape) == (("tp1",), ("tp2",), (4, WIDTH)), name
    queries = run.sharded.tensors["model.layers.0.self_attn.q_proj.weight"]
    assert (queries.split_over, queries.reduce) == (("tp1", "tp2"), ())
    assert queries.local_shape == (WIDTH // (sizes[0] * sizes[1]), WIDTH)


@pytest.mark.parametrize("mesh", ["tp4", "tp8"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_as_few_collectives_as_with_enough_heads(heads: int, mesh: str) -> None:
    """4 a layer and 2 more, whatever the number of heads of keys and values."""
    run = grouped(heads).check(mesh, "whole_sequence")
    assert inserted(run) == Counter(all_reduce=EACH, sum_gradient=EACH, embedding=1, cross_entropy=1)
    for counter in run.counters:
        assert counter.calls(phase="forward") == counter.calls("all_reduce", phase="forward") == EACH + LOSS
        assert counter.calls(phase="backward") == counter.calls("all_reduce", phase="backward") == EACH


@pytest.mark.parametrize("mesh", ["tp4", "tp8"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_as_few_collectives_with_sequence_parallelism(heads: int, mesh: str) -> None:
    run = grouped(heads).check(mesh)
    assert inserted(run) == Counter(all_gather=EACH, reduce_scatter=EACH, embedding=1, cross_entropy=1)
    for counter in run.counters:
        for phase in ("forward", "backward"):
            assert counter.calls("all_gather", phase=phase) == EACH
            assert counter.calls("reduce_scatter", phase=phase) == EACH


@pytest.mark.parametrize("mesh", ["tp4", "tp8"])
def test_each_rank_sends_as_much_as_with_enough_heads(mesh: str) -> None:
    few, enough = (grouped(heads).check(mesh, "whole_sequence").counters for heads in (2, 8))
    for one, other in zip(few, enough):
        for phase in ("forward", "backward"):
            assert one.bytes(phase=phase) == other.bytes(phase=phase)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_beside_a_split_sequence(table: str) -> None:
    run = grouped(2).check("cp2 tp4", table)
    assert run.error < EXACT, str(run)
    assert dict(run.sharded.mesh.sizes) == {"cp": 2, "tp1": 2, "tp2": 2}
    for name in KEYS:
        assert run.sharded.tensors[name].reduce == ("cp", "tp2"), name
    kept = 2 * LAYERS + (EACH if table == "default" else 0)
    assert inserted(run)["all_gather"] == kept
    assert not inserted(run)["all_to_all"]


def test_beside_a_split_batch() -> None:
    run = grouped(2).check("dp2 tp4")
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors[KEYS[0]].reduce == ("dp", "tp2")


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_one_head_of_keys_and_values(mesh: str, table: str) -> None:
    """Nothing of it can be split, so that the mesh dim stays in one piece."""
    run = grouped(1).check(mesh, table)
    assert run.error < EXACT, str(run)
    assert dict(run.sharded.mesh.sizes) == {"tp": int(mesh[2:])}
    for name in KEYS:
        laid = run.sharded.tensors[name]
        assert (laid.split_over, laid.reduce) == ((), ("tp",)), name
    assert run.sharded.tensors["model.layers.0.self_attn.q_proj.weight"].split_over == ("tp",)


@pytest.mark.parametrize(
    "plan", [fxpar.Plan(tp=4), fxpar.Plan(cp=2, tp=4, sequence_parallel=False)], ids=["tp4", "cp2 tp4"]
)
def test_the_modules_that_are_made(plan: fxpar.Plan) -> None:
    torch.manual_seed(0)
    model = llama(num_key_value_heads=2).double().train()
    report = fxpar.verify(model, kwargs=causal(), plan=plan, simulate=True)
    assert report.ok, report.text()
    assert max(report.loss_error, report.gradient_error, report.parameter_error) < EXACT


def test_an_optional_split_may_take_one_piece_alone() -> None:
    """6 tokens: 3 on each rank of tp1, the same ones on the ranks of tp2."""
    torch.manual_seed(0)
    ids = tokens(0, 90, (BATCH, 6))
    model = llama(num_key_value_heads=2, num_hidden_layers=1).double()
    run = Case(model, {"input_ids": ids, "labels": ids.clone()}).check("tp4")
    assert run.error < EXACT, str(run)
    assert run.sharded.notes == ["sequence = 6 stays whole: it does not divide over tp2 = 2"]
    assert run.sharded.tensors["model.norm.weight"].reduce == ("tp1",)


class Layers(nn.Module):
    """One layer of attention for each number of heads of keys and values."""

    def __init__(self, *heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(96, WIDTH)
        self.q, self.out = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in heads) for _ in range(2))
        self.k, self.v = (nn.ModuleList(nn.Linear(WIDTH, 4 * n) for n in heads) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in zip(self.q, self.k, self.v, self.out):
            q, k, v = (f(x).view(BATCH, LENGTH, -1, 4).transpose(1, 2) for f in layer[:3])
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + layer[3](y.transpose(1, 2).flatten(2))
        return x


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize(
    ("heads", "sizes"), [((8, 2), {"tp1": 2, "tp2": 2}), ((2, 1), {"tp1": 2, "tp2": 2}), ((8, 1), {"tp": 4})]
)
def test_layers_of_several_kinds(heads: tuple[int, ...], sizes: Mapping[str, int], table: str) -> None:
    """The smallest number of heads says where the mesh dim is cut, for all layers."""
    torch.manual_seed(0)
    run = Case(Layers(*heads).double(), {"ids": tokens()}).check("tp4", table)
    assert run.error < EXACT, str(run)
    assert dict(run.sharded.mesh.sizes) == sizes


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 24}, 4, ("3", "1 or 3")),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, 8, ("2", "1 or 2")),
    ],
)
def test_what_does_not_fit_is_refused(config: Mapping[str, Any], size: int, said: tuple[str, str]) -> None:
    with pytest.raises(PlanError) as caught:
        Case(llama(num_hidden_layers=1, **config).double(), causal()).shard(f"tp{size}")
    lines = str(caught.value).splitlines()
    assert lines[0] == "rules/splits/default.yaml:2:8: axis `heads` does not divide over `tp`"
    assert lines[3].startswith("  model.layers.0.self_attn.q_proj.weight (modeling_llama.py:")
    assert lines[3].endswith(f"): heads = {said[0]}, tp = {size}")
    assert lines[-1] == f"  tp may be {said[1]}"


def test_a_dim_is_cut_for_an_axis_of_the_table_only() -> None:
    sharded = grouped(2).shard(Mesh({"tp": 4}), rows("ffn: tp\nvocab: tp"))
    assert dict(sharded.mesh.sizes) == {"tp": 4}
