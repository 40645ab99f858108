"""Partitions run at sizes other than the example's: loss and every gradient are those of the whole model."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from fxpar.capture import source
from fxpar.passes import Partition
from fxpar.plan import Plan

sys.path.insert(0, str(Path(__file__).parent))
from dynamic_models import partitioned, worst_error

AXES = ["batch", "sequence"]
EXAMPLE = str(Path(__file__).parents[2] / "examples" / "nanogpt.py")
SMALL: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
CLASSES: dict[str, Any] = {
    "causal": lambda **how: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **SMALL,
            **how,
            intermediate_size=64,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=64,
            use_cache=False,
        )
    ),
    "positions": lambda **how: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **how,
            vocab_size=96,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            use_cache=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    ),
    "padded": lambda **how: transformers.BertForMaskedLM(
        transformers.BertConfig(
            **SMALL,
            **how,
            intermediate_size=64,
            num_attention_heads=4,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ),
    "pair": lambda **how: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **how,
            vocab_size=96,
            d_model=32,
            d_kv=8,
            num_heads=4,
            d_ff=64,
            num_layers=2,
            dropout_rate=0.0,
            use_cache=False,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    ),
    "fused": lambda **how: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            **SMALL,
            **how,
            intermediate_size=64,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            use_cache=False,
        )
    ),
}
#: (batch, length, length of the labels)
SIZES = [(8, 16, 16), (16, 24, 24), (8, 8, 8)]
PAIRS = [(8, 16, 16), (16, 24, 12), (8, 8, 20)]


def batch_of(kind: str, batch: int, length: int, target: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(batch * length)
    ids = torch.randint(96, (batch, length), generator=draw)
    labels = torch.randint(96, (batch, target), generator=draw)
    labels[0, 1:3] = -100
    found = {"input_ids": ids, "labels": labels}
    if kind == "padded":
        found["attention_mask"] = torch.ones_like(ids)
        found["attention_mask"][1, length // 2 :] = 0
    return found


@pytest.mark.parametrize(
    ("kind", "attention", "plan"),
    [
        ("causal", "sdpa", Plan(tp=2, pp=2, dynamic=AXES)),
        ("causal", "eager", Plan(cp=2, dynamic=AXES)),
        ("positions", "sdpa", Plan(tp=2, dynamic=AXES)),
        ("padded", "sdpa", Plan(cp=2, dynamic=AXES)),
        ("padded", "eager", Plan(tp=2, pp=2, dynamic=AXES)),
        ("pair", "eager", Plan(tp=2, dynamic=AXES)),
        ("fused", "sdpa", Plan(dp=2, dynamic=AXES)),
    ],
)
def test_public_models(kind: str, attention: str, plan: Plan) -> None:
    torch.manual_seed(0)
    model: nn.Module = CLASSES[kind](attn_implementation=attention).double().train()
    sizes = PAIRS if kind == "pair" else SIZES
    made = partitioned(model, batch_of(kind, *SIZES[0]), plan)
    batches = [batch_of(kind, *each) for each in sizes]
    assert worst_error(model, made, batches, lambda outputs: outputs["loss"]) < 1e-12


def nanogpt(batch: int, length: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(batch * length)
    text = torch.randint(512, (batch, length + 1), generator=draw)
    return {"idx": text[:, :-1].clone(), "targets": text[:, 1:].clone()}


def example(plan: Plan) -> tuple[nn.Module, Partition]:
    torch.manual_seed(0)
    model = source.find(EXAMPLE).build(real=True, dtype=torch.float64).train()
    return model, partitioned(model, nanogpt(8, 32), plan)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(dynamic=AXES),
        Plan(tp=2, dynamic=AXES),
        Plan(tp=2, pp=2, dynamic=AXES),
        Plan(cp=2, dp=2, dynamic=AXES),
        Plan(tp=2, sequence_parallel=False, dynamic=AXES),
        Plan(pp=2, dynamic=["sequence"]),
    ],
)
def test_the_example(plan: Plan) -> None:
    model, made = example(plan)
    batch = 16 if "batch" in (plan.dynamic or ()) else 8
    batches = [nanogpt(8, 32), nanogpt(batch, 64), nanogpt(batch, 8), nanogpt(8, 32)]
    assert worst_error(model, made, batches, lambda outputs: outputs[1]) < 1e-12


def test_what_is_emitted_reads_its_sizes(golden: Callable[[str, str], None]) -> None:
    """Without comments, which have lines of other files in them."""
    _, made = example(Plan(tp=2, pp=2, dynamic=AXES))
    text = "\n".join(made.texts[name] for name in ("prepare.py", "stage_1.py"))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "Source:", "Plan:"))]
    code = [re.sub(r"  # .*", "", line) for line in lines]
    golden("dynamic.txt", "\n".join(code) + "\n")
    assert made.manifest.inputs[0].shape == (8, 32)


def test_a_static_partition_has_no_sizes() -> None:
    _, made = example(Plan(tp=2))
    assert made.manifest.dynamic == ()
    assert '"dynamic"' not in made.manifest.to_json()
    assert "idx.shape" not in made.texts["stage_0.py"]


def test_the_hash_tells_dynamic_partitions_apart() -> None:
    hashes = {example(plan)[1].manifest.hash for plan in (Plan(), Plan(dynamic=["batch"]))}
    assert len(hashes) == 2


def test_torch_compiles_an_emitted_module() -> None:
    """With the backend that only traces, since what is asked is whether sizes stay symbols."""
    from fxpar.parts import ModelWeights, reader
    from fxpar.runtime.assemble import assemble
    from fxpar.runtime.groups import alone

    _, made = example(Plan(dynamic=AXES))
    module = assemble(
        made.manifest, made.texts, alone(made.mesh), reader(made, 0, ModelWeights(made.program)), device="cpu"
    )
    compiled = torch.compile(module.stages[0], backend="eager", dynamic=True, fullgraph=True)
    counts: Mapping[str, int] = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    for size in ((8, 32), (16, 64), (4, 16)):
        given = nanogpt(*size)
        torch.testing.assert_close(compiled(**given)[1], module.stages[0](**given)[1])
    assert counts["unique_graphs"] - before == 1
