"""Small models in float64 for the tests of the shard pass, each captured once for all tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from shard_case import Case
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB, BATCH, LENGTH, WIDTH, FFN, LAYERS = 96, 4, 16, 32, 64, 2
Inputs = dict[str, Any]
_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}


def tokens(seed: int = 0, vocab: int = VOCAB, shape: tuple[int, ...] = (BATCH, LENGTH)) -> Tensor:
    """Token numbers."""
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def labels(ignore: int = -100) -> Tensor:
    """Targets of which every part of the batch, and of the sequence, counts another number."""
    found = tokens(1)
    found[0, 3:9] = found[1, 12:] = found[3, :1] = ignore
    return found


def causal() -> Inputs:
    """Tokens and labels."""
    return {"input_ids": tokens(), "labels": labels()}


def padded() -> Inputs:
    """Tokens, labels and a padding mask; what is padding does not count."""
    inputs = causal() | {"attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64)}
    inputs["attention_mask"][1, 10:] = inputs["attention_mask"][2, 13:] = 0
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    return inputs


def llama(**config: Any) -> nn.Module:
    """Rotary positions, grouped queries, gated feed-forward."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_DECODER | config))


def phi3(**config: Any) -> nn.Module:
    """Fused projections of uneven parts."""
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**_DECODER | config))


def gpt2(dropout: float = 0.0, **config: Any) -> nn.Module:
    """Fused projections of even parts, weights [in, out], a tied head."""
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "n_positions": 64}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "use_cache": False, "loss_type": "ForCausalLM"}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | drop | ends | config))


def bert(**config: Any) -> nn.Module:
    """An encoder with padding."""
    sizes = {k: v for k, v in _DECODER.items() if k not in ("num_key_value_heads", "use_cache")}
    drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_attention_heads": 4}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes | drop | config))


def t5(**config: Any) -> nn.Module:
    """An encoder and a decoder with learned position biases."""
    sizes = {
        "d_model": WIDTH,
        "d_kv": 8,
        "d_ff": FFN,
        "num_layers": LAYERS,
        "num_heads": 4,
        "vocab_size": VOCAB,
    }
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "use_cache": False, "dropout_rate": 0.0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes | ends | config))


class Encoder(nn.Module):
    """torch's own encoder, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, FFN, batch_first=True, dropout=0.0)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, ids: Tensor, labels: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self.layers(self.tokens(ids), src_key_padding_mask=padding))
        return F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1)), logits


class Perceptron(nn.Module):
    """Three linear layers and two losses."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(12, FFN), nn.Linear(FFN, FFN), nn.Linear(FFN, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.down(torch.tanh(self.middle(F.relu(self.up(x)))))
        return F.cross_entropy(logits, y) + 0.1 * logits.square().mean()


def _encoder() -> Inputs:
    inputs = padded()
    return {"ids": inputs["input_ids"], "labels": inputs["labels"], "padding": inputs["attention_mask"] == 0}


def _perceptron() -> Inputs:
    return {"x": torch.randn(8, 12, dtype=torch.float64), "y": torch.arange(8) % 6}


@cache
def example() -> ModuleType:
    """The model of the examples."""
    path = Path(__file__).parents[2] / "examples/nanogpt.py"
    spec = importlib.util.spec_from_file_location("example_nanogpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _example_model() -> nn.Module:
    return example().GPT(
        example().GPTConfig(layers=LAYERS, width=WIDTH, heads=4, length=LENGTH, vocabulary=VOCAB)
    )


def _example_inputs() -> Inputs:
    return {"idx": tokens(), "targets": labels(-1)}


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Inputs]]] = {
    "nanogpt": (_example_model, _example_inputs),
    "llama": (llama, causal),
    "gpt2": (gpt2, causal),
    "phi3": (phi3, causal),
    "bert": (bert, padded),
    "t5": (t5, padded),
    "encoder": (Encoder, _encoder),
    "perceptron": (Perceptron, _perceptron),
}


@cache
def case(name: str) -> Case:
    """A model of the table, captured."""
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    return Case(build().double().train(), inputs())
