"""Small models in float64 with a batch each, for verification as a whole."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

NANOGPT = Path(__file__).parents[2] / "examples" / "nanogpt.py"
VOCAB, BATCH, LENGTH, LAYERS = 96, 4, 16, 2
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_attention_heads": 8, "num_key_value_heads": 4, "use_cache": False}


def subject_of(name: str, *, loss: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """A model and its batch, without targets if it is not to have a loss."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    if not loss:
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "targets")}
    return model.double(), inputs


def _text() -> dict[str, torch.Tensor]:
    """Tokens, and targets of which every part of the batch counts another number."""
    tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[0, 3:9] = labels[2, :2] = -100
    return {"input_ids": tokens, "labels": labels}


def nanogpt(dropout: float = 0.0) -> tuple[nn.Module, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("nanogpt", NANOGPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(vocabulary=VOCAB, length=LENGTH, width=32, dropout=dropout)
    return module.GPT(config), {"idx": _text()["input_ids"], "targets": _text()["labels"].clamp(min=-1)}


def llama(heads: int = 4, dropout: float = 0.0) -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**_GROUPED | {"num_key_value_heads": heads}, attention_dropout=dropout)
    return transformers.LlamaForCausalLM(config), _text()


def phi3() -> tuple[nn.Module, dict[str, Any]]:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**_GROUPED)), _text()


def gpt2(dropout: float = 0.0, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "use_cache": False, "loss_type": "ForCausalLM"}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drop, **ends, **options)), _text()


def bert(dropout: float = 0.0) -> tuple[nn.Module, dict[str, Any]]:
    drop = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, 10:] = 0
    return transformers.BertForMaskedLM(
        transformers.BertConfig(**_SIZES, **drop, num_attention_heads=4)
    ), _text() | {"attention_mask": mask}


def t5(dropout: float = 0.0) -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": LAYERS}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False}
    config = transformers.T5Config(**sizes, **ends, dropout_rate=dropout)
    return transformers.T5ForConditionalGeneration(config), _text()


MODELS = {"nanogpt": nanogpt, "llama": llama, "phi3": phi3, "gpt2": gpt2, "bert": bert}
