"""All passes together: what travels between stages, and how much text a model makes."""

from __future__ import annotations

import pytest
import torch
import transformers

from fxpar.capture import capture
from fxpar.passes import Partition, split
from fxpar.plan import Plan


@pytest.fixture(scope="module")
def partition() -> Partition:
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        use_cache=False,
    )
    ids = torch.randint(0, 96, (4, 16))
    model = transformers.LlamaForCausalLM(config)
    return split(capture(model, (), {"input_ids": ids, "labels": ids.clone()}), Plan(tp=2, pp=2))


def test_a_stage_sends_the_slice_of_a_rank(partition: Partition) -> None:
    """With sequence parallelism the residual stream is complete and cut, never a summand of the whole sequence."""
    (sent,) = partition.manifest.stages[0].sent
    assert sent.shape == (1, 8, 32)


def test_all_layers_of_a_stage_are_one_class(partition: Partition) -> None:
    for stage in ("stage_0.py", "stage_1.py"):
        classes = [line for line in partition.texts[stage].splitlines() if line.startswith("class ")]
        assert len(classes) == 2
