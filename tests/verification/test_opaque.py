"""Opaque modules on every rank: parameters, buffers and gradients as in the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import opaque_model
import pytest
import torch
import transformers

import fxpar
from fxpar.errors import RankError, ShardError
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate

MODEL = f"{Path(__file__).parent / 'opaque_model.py'}:Model"
EXPERTS = ["layers.*.experts"]
PLANS: list[dict[str, Any]] = [
    {"tp": 2},
    {"dp": 2},
    {"cp": 2, "tp": 2},
    {"pp": 2, "microbatches": 1},
    {"tp": 2, "pp": 2, "microbatches": 1},
]


@pytest.mark.parametrize("sizes", PLANS, ids=str)
def test_exact(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plan = fxpar.Plan(opaque=EXPERTS, **sizes)
    inputs = opaque_model.example_inputs()
    report = fxpar.verify(opaque_model.Model().double(), kwargs=inputs, plan=plan, simulate=True)
    assert report.ok, report.text()
    assert {"layers.0.experts.up", "layers.1.experts.scale"} <= {row.name for row in report.rows}


def test_layers_share_a_class() -> None:
    plan = fxpar.Plan(tp=2, opaque=EXPERTS)
    made = fxpar.partition(opaque_model.Model(), plan, opaque_model.example_inputs())
    text = made.texts["stage_0.py"]
    assert text.count("self.leaves(") == 1
    assert made.manifest.opaque == ("layers.0.experts", "layers.1.experts")
    assert "layers.0.experts" not in text.replace("layers.0.experts.", "")


def test_microbatches_are_refused() -> None:
    plan = fxpar.Plan(pp=2, opaque=EXPERTS, microbatches=2)
    with pytest.raises(ShardError, match=r"microbatches mix at `fxpar.leaf`: it needs the whole batch"):
        fxpar.partition(opaque_model.Model(), plan, opaque_model.example_inputs())


@pytest.mark.gloo
def test_in_real_processes() -> None:
    plan = fxpar.Plan(tp=2, opaque=EXPERTS)
    report = fxpar.verify(MODEL, plan=plan, dtype=torch.float64)
    assert report.ok, report.text()


def test_a_folder_needs_the_model(tmp_path: Path) -> None:
    plan = fxpar.Plan(tp=2, opaque=EXPERTS)
    fxpar.partition(MODEL, plan, out=tmp_path / "named", weights=False)
    made = fxpar.partition(opaque_model.Model(), plan, opaque_model.example_inputs(), tmp_path / "module")
    simulate(made.mesh, lambda _, groups: load(tmp_path / "named", groups, "cpu") and None)
    with pytest.raises(RankError, match=r"`layers.0.experts` cannot be built: the manifest has no source"):
        simulate(made.mesh, lambda _, groups: load(tmp_path / "module", groups, "cpu") and None)


def _dbrx() -> torch.nn.Module:
    config = transformers.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
        vocab_size=64,
        use_cache=False,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        pad_token_id=0,
    )
    return transformers.DbrxForCausalLM(config)


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"tp": 2, "pp": 2, "microbatches": 1}], ids=str)
def test_dbrx(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ids = opaque_model.example_inputs()["idx"].clamp(min=1)
    plan = fxpar.Plan(opaque=["transformer.blocks.*.ffn.experts"], **sizes)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    report = fxpar.verify(_dbrx().double(), kwargs=inputs, plan=plan, simulate=True)
    assert report.ok, report.text()


SPEECH = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"pp": 2, "microbatches": 2}], ids=str)
@pytest.mark.parametrize("name", SPEECH)
def test_speech_without_labels(name: str, sizes: dict[str, Any]) -> None:
    """Convolutions, group norms and a position convolution whose weight is normalised."""
    config = getattr(transformers, f"{SPEECH[name]}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(32, 32),
        conv_stride=(4, 2),
        conv_kernel=(8, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        apply_spec_augment=False,
        layerdrop=0.0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{SPEECH[name]}ForCTC")(config).double()
    sound = torch.randn(4, 404, dtype=torch.float64)
    report = fxpar.verify(model, kwargs={"input_values": sound}, plan=fxpar.Plan(**sizes), simulate=True)
    assert report.ok, report.text()
