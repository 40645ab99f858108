"""The models of the zoo: rows of public.yaml and builders of others.py, each with a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from models.inputs import KINDS, Inputs
from models.others import BUILDERS


@dataclass(frozen=True)
class Entry:
    """One model with one implementation of attention."""

    name: str
    attention: str

    @property
    def label(self) -> str:
        """The name and the attention, if there is a choice."""
        return self.name if self.attention == "none" else f"{self.name}, {self.attention}"

    def build(self, dropout: float = 0.0, dtype: torch.dtype | None = None) -> tuple[nn.Module, Inputs]:
        """The model in train mode with random weights, and its batch; float64 unless the class can do float32 only."""
        torch.manual_seed(0)
        model, batch = self._build(dropout)
        dtype = dtype or self.dtype
        return model.to(dtype).train(), {name: _cast(value, dtype) for name, value in batch.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is compared in."""
        row = _rows()["classes"].get(self.name, {})
        return torch.float32 if row.get("dtype") == "float32" else torch.float64

    def _build(self, dropout: float) -> tuple[nn.Module, Inputs]:
        if self.name in BUILDERS:
            return BUILDERS[self.name](dropout)
        row = _rows()["classes"][self.name]
        return _public(row, self.attention, dropout), KINDS[row.get("input", "tokens")]()


def entries() -> Iterator[Entry]:
    """Every model of the zoo."""
    for name, row in _rows()["classes"].items():
        for attention in row.get("attention", ["sdpa", "eager"]):
            yield Entry(name, attention)
    for name in BUILDERS:
        yield Entry(name, "none")


@cache
def _rows() -> Any:
    return yaml.safe_load(Path(__file__).with_name("public.yaml").read_text(encoding="utf-8"))


def _public(row: dict[str, Any], attention: str, dropout: float) -> nn.Module:
    """A class of transformers by its own configuration, without a cache and with one rate of dropout."""
    import transformers

    kind = getattr(transformers, row["class"])
    settings: dict[str, Any] = {"use_cache": False}
    for name in row.get("like", []):
        settings |= _rows()["settings"][name]
    settings |= row.get("set", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = kind.config_class(**settings)
        _set_dropout(config, dropout)
        if attention != "none":
            config._attn_implementation = attention
        model: nn.Module = kind(config)
    return model


def _set_dropout(config: Any, rate: float) -> None:
    """Set every rate of dropout, also of configurations within; whole layers are never dropped."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _set_dropout(value, rate)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0 if "layer" in name else rate)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value
