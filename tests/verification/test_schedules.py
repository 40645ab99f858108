"""Every schedule on real models, with tensor and sequence parallelism: loss, all gradients and outputs are exact."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from verification_models import nanogpt

from fxpar.again import precision
from fxpar.dynamic.capture import captured
from fxpar.parts import ModelWeights
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.schedule import SCHEDULES
from fxpar.verification.simulated import verify_simulated
from fxpar.verification.subject import Subject

VOCAB, BATCH, LENGTH, LAYERS = 48, 12, 8, 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": LENGTH}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "loss_type": "ForCausalLMLoss"}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off, **tokens))


def _bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **NO_DROPOUT))


def _t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    off = {"dropout_rate": 0.0, "use_cache": False, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **off))


def _mixtral() -> nn.Module:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, **experts)
    )


MODELS = {"llama": _llama, "gpt2": _gpt2, "bert": _bert, "t5": _t5, "mixtral": _mixtral}
#: Ranks along pp, microbatches, other sizes of the mesh: numbers that divide and that do not.
LAYOUTS = [(2, 3, {}), (2, 4, {"tp": 2}), (4, 6, {}), (4, 12, {"tp": 2})]


@cache
def found(name: str) -> tuple[nn.Module, dict[str, torch.Tensor], Any]:
    """A model, its batch and its graph, made once."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (BATCH, LENGTH), generator=generator)
    labels = ids.clone()
    labels[0, 1:5] = labels[3] = -100
    if name == "nanogpt":
        model, _ = nanogpt()
        model, batch = model.double(), {"idx": ids, "targets": labels.clamp(min=-1)}
    else:
        model, batch = MODELS[name]().double(), {"input_ids": ids, "labels": labels}
    with precision(True):
        return model, batch, captured(model, (), batch, Plan())


@pytest.mark.parametrize(("ranks", "microbatches", "others"), LAYOUTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*MODELS, "nanogpt"])
def test_exact(name: str, schedule: str, ranks: int, microbatches: int, others: dict[str, int]) -> None:
    model, batch, program = found(name)
    virtual = SCHEDULES[schedule].least
    plan = Plan(pp=ranks, vpp=virtual, schedule=schedule, microbatches=microbatches, **others)
    partition = split(program, plan)
    assert len(partition.stages) == ranks * virtual
    report = verify_simulated(Subject(partition, model, (), batch, ModelWeights(program, None), exact=True))
    errors = (report.loss_error, report.gradient_error, report.norm_error, report.parameter_error)
    assert max(*errors, report.output_error) < 1e-11
