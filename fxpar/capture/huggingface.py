"""A model from a folder in Hugging Face's layout: its class and its example inputs come from `config.json`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxpar.capture.build import construction
from fxpar.capture.example import Example, InputSpec, from_texts
from fxpar.capture.source import Source
from fxpar.checkpoint.index import NAME, SHARDED, SINGLE
from fxpar.checkpoint.weights import Weights
from fxpar.errors import ModelError

#: Sizes of example inputs: sequences, and tokens of the longest of them.
BATCH, LENGTH = 4, 128
#: What is copied beside the weights of a partition.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "*tokenizer*",
    "*token*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*processor_config.json",
)
#: Height and width of images for models that take any.
IMAGE = 224


@dataclass
class FolderSource(Source):
    """A folder with a `config.json`, and weights in safetensors files if it has any."""

    text: str
    folder: Path

    def build(
        self,
        *,
        real: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The model in the dtype of its configuration unless told otherwise, without a cache of keys and values.

        `options` are fields of the configuration. With `real` the weights are drawn under `seed`: `weights` reads
        those of the folder.
        """
        config = self.config(options)
        kind = model_class(config, self.folder)
        with construction(real=real, seed=seed, dtype=dtype or _dtype(config)):
            try:
                model: nn.Module = kind(config)
            except Exception as error:
                what = f"{self.folder}: `{kind.__name__}` cannot be built: {type(error).__name__}: {error}"
                raise ModelError(what) from error
        return model

    def config(self, options: Mapping[str, Any] | None = None) -> Any:
        """The configuration, with fields replaced by `options`. Raises ModelError for one that it does not have."""
        transformers = _transformers()
        path = self.folder / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            kind = transformers.CONFIG_MAPPING[fields["model_type"]]
            config = kind.from_dict(fields)
        except FileNotFoundError:
            raise ModelError(f"there is no {path}") from None
        except json.JSONDecodeError as error:
            raise ModelError(f"{path}: {error}") from error
        except KeyError as error:
            raise ModelError(f"{path}: transformers has no model type {error}") from error
        for part in _parts(config):
            if hasattr(part, "use_cache"):
                part.use_cache = False
        for name, value in (options or {}).items():
            if not hasattr(config, name) and name not in ("attn_implementation", "experts_implementation"):
                raise ModelError(f"{path}: a {type(config).__name__} has no field `{name}`")
            setattr(config, f"_{name}" if name.endswith("_implementation") else name, value)
        return config

    def example(self, inputs: Sequence[str] = (), *, seed: int = 0) -> Example:
        """The inputs that the model's task asks for: 4 sequences of at most 128 tokens, images, ..., and labels."""
        if inputs:
            return from_texts(inputs, seed)
        config = self.config()
        kind = model_class(config, self.folder)
        specs = _specs(kind, config, self.folder)
        tensors = {spec.name: spec.tensor(seed) for spec in specs}
        if "attention_mask" in tensors:
            tensors["attention_mask"] = torch.ones_like(tensors["attention_mask"])
        return Example(kwargs=tensors)

    def weights(self, model: nn.Module) -> Weights | None:
        """The weights of the folder by the model's names, None if it has none. Raises CheckpointError."""
        if not any((self.folder / name).is_file() for name in (SINGLE, SHARDED, NAME)):
            return None
        from fxpar.capture.hfweights import FolderWeights

        return FolderWeights(self.folder, model)

    def companions(self) -> list[Path]:
        """The configuration, and the files of the tokenizer and of the processor of inputs."""
        found = {path for pattern in COMPANIONS for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())


def model_class(config: Any, folder: Path) -> Any:
    """The class that `architectures` names, or the plain model of the type. Raises ModelError if there is none."""
    transformers = _transformers()
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if config.architectures:
        raise ModelError(f"{folder}: transformers has no class {', '.join(config.architectures)}")
    return transformers.MODEL_MAPPING[type(config)]


def _specs(kind: Any, config: Any, folder: Path) -> list[InputSpec]:
    """What `forward` needs, by its signature and the tables of tasks that transformers keeps."""
    taken = inspect.signature(kind.forward).parameters
    main = kind.main_input_name
    tasks = _tasks(kind.__name__)
    specs = [_main(main, config, folder)]
    tokens = specs[0].sizes[:2]
    high = specs[0].high
    if main == "input_ids" and "causal" not in tasks and "attention_mask" in taken:
        specs.append(InputSpec("attention_mask", torch.int64, tokens))
    if "tokens" in tasks and "labels" in taken:
        length = tokens if main == "input_ids" else (BATCH, _length(config))
        specs.append(InputSpec("labels", torch.int64, length, _text(config).vocab_size))
    elif "classes" in tasks and "labels" in taken:
        specs.append(InputSpec("labels", torch.int64, (BATCH,), config.num_labels))
    elif "token classes" in tasks and "labels" in taken:
        specs.append(InputSpec("labels", torch.int64, tokens, config.num_labels))
    elif "answers" in tasks and "start_positions" in taken:
        ends = ("start_positions", "end_positions")
        specs += [InputSpec(name, torch.int64, (BATCH,), tokens[1]) for name in ends]
    elif config.is_encoder_decoder and "decoder_input_ids" in taken:
        specs.append(InputSpec("decoder_input_ids", torch.int64, (BATCH, _length(config)), high))
    return specs


def _main(name: str, config: Any, folder: Path) -> InputSpec:
    text = _text(config)
    if name == "input_ids":
        return InputSpec(name, torch.int64, (BATCH, _length(config)), text.vocab_size)
    dtype = _dtype(config)
    if name == "pixel_values" and hasattr(config, "num_channels"):
        size = getattr(config, "image_size", None) or IMAGE
        height, width = (size, size) if isinstance(size, int) else size
        return InputSpec(name, dtype, (BATCH, config.num_channels, height, width))
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        return InputSpec(name, dtype, (BATCH, config.num_mel_bins, 2 * config.max_source_positions))
    raise ModelError(
        f"{folder}: no example can be made for the input `{name}`",
        details=[f"give it: --input '{name}:float32[2,...]'"],
    )


_TABLES = {
    "CAUSAL_LM": ("causal", "tokens"),
    "MASKED_LM": ("tokens",),
    "SEQ_TO_SEQ_CAUSAL_LM": ("tokens",),
    "SPEECH_SEQ_2_SEQ": ("tokens",),
    "SEQUENCE_CLASSIFICATION": ("classes",),
    "IMAGE_CLASSIFICATION": ("classes",),
    "TOKEN_CLASSIFICATION": ("token classes",),
    "QUESTION_ANSWERING": ("answers",),
}


def _tasks(name: str) -> set[str]:
    from transformers.models.auto import modeling_auto

    tasks: set[str] = set()
    for table, marks in _TABLES.items():
        names = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").values()
        if any(name == entry or name in entry for entry in names):
            tasks |= set(marks)
    return tasks


def _length(config: Any) -> int:
    """The tokens of an example: what the positions allow, at most `LENGTH`."""
    text = _text(config)
    names = ("max_position_embeddings", "max_target_positions")
    limits: list[int] = [getattr(text, name) for name in names if isinstance(getattr(text, name, None), int)]
    return min([LENGTH, *(limit for limit in limits if limit > 0)])


def _text(config: Any) -> Any:
    return config.get_text_config()


def _parts(config: Any) -> list[Any]:
    return [config, *(getattr(config, name) for name in config.sub_configs if getattr(config, name, None))]


def _dtype(config: Any) -> torch.dtype:
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "a Hugging Face model needs transformers", details=["pip install 'fxpar[hf]'"]
        ) from None
    return transformers
