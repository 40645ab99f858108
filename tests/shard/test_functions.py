"""Functions with gradients of their own: split where their inside allows it, whole elsewhere, exact everywhere."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from shard_case import Case, rows
from shard_functions import FUNCTIONS, build
from shard_modules import labels, tokens

from fxpar.axes.links import WHOLE
from fxpar.capture.functions import FunctionCall
from fxpar.shard.sharded import Sharded

EXACT = 1e-9


@cache
def case(name: str) -> Case:
    """A model, captured."""
    return Case(*build(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exact(name: str) -> None:
    for mesh, table in [("tp2", "default"), ("tp2", "whole_sequence"), ("dp2 cp2 tp2", "default")]:
        run = case(name).check(mesh, table)
        assert run.error < EXACT, f"{mesh}: {run}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_may_be_split(name: str) -> None:
    assert axes(case(name).shard("dp2 cp2 tp2")) == FUNCTIONS[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_axes_that_do_not_divide(name: str) -> None:
    """64 over 3 ranks: what a Function makes of the padding goes nowhere."""
    table = "vocab: tp~" if name in ("gate", "heads") else "ffn: tp~\nvocab: tp~"
    run = case(name).check("tp3", rows(table))
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["head.weight"].local_shape[0] == 22


def test_a_router_that_is_trained_with_noise_of_size_zero() -> None:
    """The second expert is chosen among those whose score is that of the best: the noise decides nothing."""
    torch.manual_seed(0)
    config = transformers.PhimoeConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=32,
        experts_implementation="batched_mm",
        router_jitter_noise=0.0,
        input_jitter_noise=0.0,
        pad_token_id=0,
        use_cache=False,
    )
    model = transformers.PhimoeForCausalLM(config).double().train()
    trained = Case(model, {"input_ids": tokens(), "labels": labels(), "use_cache": False})
    for mesh in ("tp2", "dp2 tp2"):
        run = trained.check(mesh)
        assert run.error < EXACT, f"{mesh}: {run}"
    assert {"batch"} <= axes(run.sharded)


def axes(sharded: Sharded) -> set[str]:
    """The axes that the first Function of a model may be split on."""
    found = sharded.found
    call = next(node for node in sharded.program.graph.nodes if isinstance(node.target, FunctionCall))
    links = found.links[call]
    names = {
        sharded.naming.axis(factor)
        for name, role in links.roles.items()
        if role.meaning != WHOLE
        for factor in links.factors(name)
    }
    return {name for name in names if name}
