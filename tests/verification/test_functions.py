"""A model with a gradient of its own, in tensor and pipeline parallelism: exact, with microbatches too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fxpar.plan import Plan
from fxpar.verification.run import verify

VOCAB = 64


def _bloom() -> nn.Module:
    off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "use_cache": False}
    config = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **off)
    return transformers.BloomForCausalLM(config)


def _inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB, (4, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize(
    "sizes", [{"tp": 2}, {"tp": 4}, {"pp": 2, "microbatches": 4}, {"tp": 2, "pp": 2}, {"dp": 2, "tp": 2}]
)
def test_a_pointwise_function_is_split(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    report = verify(_bloom().double(), kwargs=_inputs(), plan=Plan(**sizes), simulate=True)
    assert report.ok, report.text()
