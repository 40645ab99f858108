"""Whole models that are trained on log-probabilities: heads split over the vocabulary, exact on every mesh."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from shard_case import Case
from shard_models import BATCH, LENGTH, VOCAB, tokens
from shard_preferences import Distilled, Preference, Ratios, pairs, samples
from torch import nn

import fxpar

EXACT = 1e-12
MODELS: dict[str, tuple[type[nn.Module], Any]] = {
    "pairs": (Preference, pairs),
    "ratios": (Ratios, samples),
    "distilled": (Distilled, lambda vocab=VOCAB: {"ids": tokens(1, vocab)}),
}
HEADS = {"pairs": "policy", "ratios": "policy", "distilled": "student"}


def build(name: str, vocab: int = VOCAB, tied: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its inputs."""
    torch.manual_seed(0)
    made, inputs = MODELS[name]
    config = {"vocab_size": vocab, "tie_word_embeddings": tied, "num_hidden_layers": 1}
    return made(**config).double(), inputs(vocab)


@cache
def case(name: str, vocab: int = VOCAB, tied: bool = False) -> Case:
    """A captured model."""
    return Case(*build(name, vocab, tied))


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize("mesh", ["tp2", "tp4", "cp2 tp2", "dp2 tp2"])
@pytest.mark.parametrize("name", MODELS)
def test_a_head_of_its_own(name: str, mesh: str, table: str) -> None:
    run = case(name).check(mesh, table)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors[f"{HEADS[name]}.lm_head.weight"].split_over == ("tp",)
    values = [n.meta["val"] for n in run.sharded.graph.nodes if n.op == "call_function"]
    assert not any(value.shape[-1:] == (VOCAB,) for value in values)


@pytest.mark.parametrize("name", MODELS)
def test_a_tied_head(name: str) -> None:
    run = case(name, tied=True).check("tp2")
    assert run.error < EXACT, str(run)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mesh", ["tp2", "cp2 tp4"])
def test_a_vocabulary_that_does_not_divide(name: str, mesh: str) -> None:
    run = case(name, 93).check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors[f"{HEADS[name]}.lm_head.weight"].split_over == ("tp",)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_reduced_is_as_small_as_the_tokens(name: str) -> None:
    sharded = case(name).shard("tp2", "whole_sequence")
    lowered = [n for n in sharded.graph.nodes if str(n.target).startswith("fxpar.log_softmax")]
    assert lowered
    found = [n for n in sharded.graph.nodes if str(n.target) == "fxpar.gather.default"]
    for each in found:
        reduced = each
        while not str(reduced.target).startswith("fxpar.all"):
            (reduced,) = reduced.users
        assert str(reduced.target) == "fxpar.all_reduce.default"
        assert reduced.meta["val"].numel() == BATCH * (LENGTH - 1)


@pytest.mark.parametrize(
    "plan",
    [
        {"tp": 2, "pp": 2, "microbatches": 2},
        {"dp": 2, "tp": 2, "microbatches": 2},
        {"tp": 2, "cp": 2, "microbatches": 4},
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_microbatches_and_stages(name: str, plan: dict[str, int]) -> None:
    model, inputs = build(name)
    report = fxpar.verify(model, kwargs=inputs, plan=fxpar.Plan(**plan), simulate=True)
    assert report.ok, report.text()
