"""Emitted modules compute what the models do: outputs, loss and gradients, in both modes, on inputs of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree

from fxpar.capture import Program, capture

VOCAB = {"vocab_size": 40}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "max_position_embeddings": 16}
LAYERS = {"num_hidden_layers": 4}
LLAMA = {**VOCAB, **SIZES, **LAYERS, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}
LLAMA |= {"bos_token_id": 1, "eos_token_id": 2}
T5 = {**VOCAB, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 4, "use_cache": False}
GPT2 = {**VOCAB, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 16, "use_cache": False}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_local_experts": 4, "experts_implementation": "batched_mm", "output_router_logits": True}
BLOOM = {**VOCAB, "hidden_size": 16, "n_layer": 3, "n_head": 4, "use_cache": False}


def tokens(seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 40, (2, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**LLAMA)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**LLAMA, head_dim=4)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**LLAMA, **EXPERTS)),
    "bloom": lambda: transformers.BloomForCausalLM(transformers.BloomConfig(**BLOOM)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**VOCAB, **SIZES, **LAYERS)),
    "albert": lambda: transformers.AlbertForMaskedLM(
        transformers.AlbertConfig(**VOCAB, **SIZES, **LAYERS, embedding_size=8)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, decoder_start_token_id=0)
    ),
}
#: What is said of the layers: how many classes there are, and the lines that call them.
CALLS = {
    "llama": ["for layer in self.model.layers:"],
    "gpt2": ["for layer in self.transformer.h:"],
    "phi3": ["for layer in self.model.layers:"],
    "gemma2": ["for i in range(0, 4, 2):"],
    "mixtral": ["for layer in self.model.layers:"],
    "bloom": ["for layer in self.transformer.h:"],
    "bert": ["for layer in self.bert.encoder.layer:"],
    "albert": ["for _ in range(4):"],
    "t5": ["for layer in self.encoder.block[1:3]:", "for layer in self.decoder.block[1:3]:"],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_emitted_module_is_the_model(
    name: str, training: bool, text_of: Callable[..., str], module_of: Callable[..., nn.Module]
) -> None:
    model = MODELS[name]().double().train(training)
    program = capture(model, kwargs=tokens(0))
    text = text_of(program)
    module = module_of(program, text)
    assert set(module.state_dict()) == set(model.state_dict())
    assert [line.strip() for line in text.splitlines() if line.strip().startswith("for ")][
        -len(CALLS[name]) :
    ] == (CALLS[name])
    for seed in (0, 1):
        assert_same(model, module, program, tokens(seed))


def test_hand_written_model(
    tiny: ModuleType, text_of: Callable[..., str], module_of: Callable[..., nn.Module]
) -> None:
    model = tiny.Decoder().double()
    inputs = {"ids": torch.randint(32, (2, 5)), "targets": torch.randint(32, (2, 5))}
    program = capture(model, kwargs=inputs)
    module = module_of(program, text_of(program))
    assert list(module.state_dict()) == list(model.state_dict())
    assert module.head.weight is module.tokens.weight
    assert_same(model, module, program, inputs)


def assert_same(model: nn.Module, module: nn.Module, program: Program, inputs: Mapping[str, Any]) -> None:
    """Hold outputs, and gradients of the first one, against the model's, with the same random numbers."""
    torch.manual_seed(1)
    expected = pytree.tree_leaves(model(**inputs))
    torch.manual_seed(1)
    found = module(**program.flat_inputs(inputs))
    assert len(expected) == len(found)
    for one, other in zip(expected, found):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)
    model.zero_grad()
    module.zero_grad()
    expected[0].backward()
    found[0].backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-12)
