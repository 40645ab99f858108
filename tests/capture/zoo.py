"""Tiny models for tests of the capture: stock classes with random weights in float64, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

VOCAB, BATCH, LENGTH = 64, 2, 8
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "use_cache": False,
}


def _causal(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, : 2 + seed] = -100
    return {"input_ids": ids, "labels": labels}


def _masked(seed: int) -> dict[str, torch.Tensor]:
    inputs = _causal(seed)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, -2 - seed :] = 0
    return inputs | {"attention_mask": mask}


def _pixels(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.tensor([1, seed])}


def llama(**config: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA | config))


def _phi3(**config: Any) -> nn.Module:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**_LLAMA | {"bos_token_id": 1} | config))


def _mixtral(**config: Any) -> nn.Module:
    experts = {"num_local_experts": 4, "experts_implementation": "batched_mm", "output_router_logits": True}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**_LLAMA | experts | config))


def _gpt2(**config: Any) -> nn.Module:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "n_positions": 32}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off, **config))


def _bert(**config: Any) -> nn.Module:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {key: value for key, value in _LLAMA.items() if key not in ("num_key_value_heads", "use_cache")}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **off, **config))


def _t5(**config: Any) -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    off = {"dropout_rate": 0.0, "use_cache": False, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **off, **config))


def _vit(**config: Any) -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "image_size": 16, "patch_size": 4}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **off, **config))


MODELS: Mapping[str, tuple[Callable[..., nn.Module], Callable[[int], dict[str, torch.Tensor]]]] = {
    "llama": (llama, _masked),
    "llama-causal": (llama, _causal),
    "phi3": (_phi3, _causal),
    "mixtral": (_mixtral, _causal),
    "gpt2": (_gpt2, _causal),
    "bert": (_bert, _masked),
    "t5": (_t5, _masked),
    "vit": (_vit, _pixels),
}


def model(name: str, attention: str = "sdpa") -> nn.Module:
    """A model of the zoo in float64, the same weights at each call."""
    torch.manual_seed(0)
    return MODELS[name][0](attn_implementation=attention).double()


def inputs(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of a model of the zoo."""
    return MODELS[name][1](seed)
