"""The models of the benchmarks, with random weights, and a batch for each; `toy` ones are for tests."""

from __future__ import annotations

from typing import Any

import torch
import transformers

NAMES = ("llama", "gpt2")


def build(name: str, *, toy: bool = False) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model in train mode without dropout, float32, and the arguments of its forward.

    A training step on 2 x 256 tokens takes about half a second on two cores of 2020.
    """
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    model = {"llama": _llama, "gpt2": _gpt2}[name](toy).train()
    tokens = torch.randint(0, model.config.vocab_size, (2, 16 if toy else 256))
    return model, {"input_ids": tokens, "labels": tokens.clone()}


def _llama(toy: bool) -> Any:
    width, layers = (32, 2) if toy else (512, 6)
    config = transformers.LlamaConfig(
        vocab_size=width * 16,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2(toy: bool) -> Any:
    width, layers = (32, 2) if toy else (512, 6)
    config = transformers.GPT2Config(
        vocab_size=width * 16,
        n_positions=512,
        n_embd=width,
        n_layer=layers,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)
