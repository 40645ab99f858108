"""Which factor goes over which mesh dim: refinement, what stays whole, and all violations at once."""

from __future__ import annotations

import pytest
import torch
from shard_case import Case, rows
from shard_models import BATCH, LENGTH, bert, case, llama, tokens
from torch import nn

from fxpar.errors import PlanError, Violations


def small(model: nn.Module, length: int = LENGTH, batch: int = BATCH) -> Case:
    ids = tokens(0, 90, (batch, length))
    return Case(model.double(), {"input_ids": ids, "labels": ids.clone()})


def test_two_mesh_dims_on_one_axis() -> None:
    sharded = case("llama").shard("cp2 tp2", rows("ffn: [cp, tp]"))
    laid = sharded.tensors["model.layers.0.mlp.up_proj.weight"]
    assert laid.words == ("(ffn ffn)", "hidden")
    assert laid.local_shape == (16, 32)
    (own,) = laid.boxes({"cp": 1, "tp": 0})
    assert own.offset == (32, 0)


def test_the_order_of_a_row_is_the_order_of_the_pieces() -> None:
    sharded = case("llama").shard("cp2 tp2", rows("ffn: [tp, cp]"))
    (own,) = sharded.tensors["model.layers.0.mlp.up_proj.weight"].boxes({"cp": 1, "tp": 0})
    assert own.offset == (16, 0)


def test_what_is_optional_stays_whole_with_a_note() -> None:
    subject = small(llama(num_hidden_layers=1), length=15)
    run = subject.check("tp2")
    assert run.error < 1e-9, str(run)
    assert any("sequence = 15 stays whole" in note and "tp = 2" in note for note in run.sharded.notes)


def test_what_is_not_optional_is_refused() -> None:
    with pytest.raises(PlanError, match=r"axis `sequence` does not divide over `cp`") as caught:
        small(llama(num_hidden_layers=1), length=15).shard("cp2")
    assert "cp may be 1, 3, 5 or 15" in str(caught.value)
    assert "rules/splits/default.yaml:5" in str(caught.value)


def test_all_violations_at_once() -> None:
    model = bert(
        num_hidden_layers=1, num_attention_heads=6, hidden_size=384, intermediate_size=90, vocab_size=97
    )
    subject = small(model, length=15, batch=3)
    with pytest.raises(Violations) as caught:
        subject.shard("dp2 cp2 tp4")
    text = str(caught.value)
    for axis, size, over in [
        ("heads", 6, "tp"),
        ("ffn", 90, "tp"),
        ("sequence", 15, "cp"),
    ]:
        assert f"axis `{axis}` does not divide over `{over}`" in text
        assert f"{axis} = {size}" in text
    assert "vocab" not in text
    assert "axis `batch` does not divide over `dp`" in text
    assert len(caught.value.errors) == 4


def test_a_head_is_never_cut() -> None:
    """384 divides by 4, but 6 heads of 64 do not."""
    with pytest.raises(PlanError, match=r"heads = 6, tp = 4") as caught:
        small(bert(num_hidden_layers=1, num_attention_heads=6, hidden_size=384)).shard("tp4")
    assert "tp may be 1, 2, 3 or 6" in str(caught.value)
    assert "query.weight" in str(caught.value)


def test_mesh_dims_that_split_nothing() -> None:
    sharded = case("llama").shard("pp2 dp1 tp2", rows("heads: tp"))
    assert set(sharded.tensors["model.norm.weight"].sizes) == {"tp"}
    assert all(laid.split_over in ((), ("tp",)) for laid in sharded.tensors.values())


def test_the_fraction_that_is_split() -> None:
    assert case("llama").shard("tp1").fraction == 0
    assert case("llama").shard("tp2").fraction > 0.98
    assert case("llama").shard("dp2").fraction == 0


def test_fewer_heads_of_keys_than_ranks() -> None:
    """They are split as far as they go, and replicated over the rest; no activation is moved for it."""
    run = small(llama(num_hidden_layers=1, num_key_value_heads=2)).check("tp4", "whole_sequence")
    assert run.error < 1e-9, str(run)
    layout = run.sharded.tensors
    assert layout["model.layers.0.self_attn.q_proj.weight"].local_shape == (8, 32)
    assert layout["model.layers.0.self_attn.k_proj.weight"].local_shape == (4, 32)
    assert layout["model.layers.0.self_attn.k_proj.weight"].reduce
    kinds = {
        str(n.target).split(".")[1] for n in run.sharded.graph.nodes if str(n.target).startswith("fxpar")
    }
    assert not kinds & {"all_gather", "all_to_all", "reduce_scatter"}
    assert torch.isfinite(run.ranks[0].outputs[0])
