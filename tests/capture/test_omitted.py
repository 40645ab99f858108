"""Outputs that are objects nobody can split, as a cache: left out, with a note, and the rest as it was."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor, nn

import fxpar
from fxpar.capture import capture
from fxpar.passes import split


class Notes:
    """Something of which fxpar knows nothing."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, object]:
        hidden = self.linear(x)
        return {"loss": hidden.square().mean(), "notes": Notes(hidden.exp()), "count": 3}


def test_an_object_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 4)
    program = capture(model, (x,))
    assert program.omitted == {"notes": "Notes"}
    assert not any("exp" in str(node.target) for node in program.graph.nodes)
    partition = split(program, fxpar.Plan())
    assert partition.manifest.notes[0] == "output `notes` is a Notes: None stands for it"
    module = fxpar.parallelize(model, fxpar.Plan(), (x,))
    found = module(x)
    assert found["notes"] is None
    assert found["count"] == 3
    torch.testing.assert_close(found["loss"], model(x)["loss"])


def test_a_model_that_returns_its_cache() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    ids = torch.randint(32, (2, 8))
    report = fxpar.verify(
        transformers.LlamaForCausalLM(config).double(),
        kwargs={"input_ids": ids, "labels": ids.clone()},
        plan=fxpar.Plan(tp=2, pp=2),
        simulate=True,
    )
    assert report.gradient_error < 1e-12
    assert set(report.outputs) == {"loss", "logits"}
