"""Where a model comes from: `file.py`, `file.py:attr`, `package.module:attr`, or a Hugging Face folder.

source = find("examples/nanogpt.py:build")
model = source.build()              # parameters on meta
example = source.example()
program = capture(model, example.args, example.kwargs)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fxpar.capture.build import construction
from fxpar.capture.example import Example, from_texts, from_value
from fxpar.capture.pyfile import beside, blamed, find_attribute, load_file, load_module, make
from fxpar.checkpoint.weights import Weights
from fxpar.errors import ModelError

FORMS = "a model is file.py, file.py:attribute, package.module:attribute, or a folder with a config.json"


class Source(ABC):
    """A model that can be built as often as wanted, and its example inputs."""

    text: str

    @abstractmethod
    def build(
        self,
        *,
        real: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The model: parameters on meta and buffers real, or all real and drawn under `seed`.

        `options` are keyword arguments of the class or function, or fields of the configuration. Raises ModelError.
        """

    @abstractmethod
    def example(self, inputs: Sequence[str] = (), *, seed: int = 0) -> Example:
        """Example inputs: those that `inputs` describe (`input_ids:int64[2,128]<32000`), else the source's own."""

    def weights(self, model: nn.Module) -> Weights | None:  # noqa: ARG002
        """The weights that come with the source, by the names of `model`; None if there are none."""
        return None

    def companions(self) -> list[Path]:
        """Files that whoever uses the model needs beside its weights: its configuration, its tokenizer."""
        return []


def find(text: str) -> Source:
    """Find a model by its text. Nothing is run or built yet. Raises ModelError for a text that names nothing."""
    path = Path(text)
    if text and (path.is_dir() or path.name == "config.json"):
        from fxpar.capture.huggingface import FolderSource

        return FolderSource(text, path if path.is_dir() else path.parent)
    name, colon, attribute = text.rpartition(":")
    name, attribute = (name, attribute) if colon else (text, "")
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ModelError(f"there is no file `{name}`", details=[FORMS])
        return FileSource(text, Path(name), attribute or None)
    if colon and all(part.isidentifier() for part in name.split(".")):
        return ModuleSource(text, name, attribute)
    raise ModelError(f"`{text}` names no model", details=[FORMS])


@dataclass
class FileSource(Source):
    """A Python file. It runs once; again for each build if it makes the model itself."""

    text: str
    path: Path
    attribute: str | None
    module: ModuleType | None = field(default=None, repr=False)

    def build(
        self,
        *,
        real: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        name, value = find_attribute(self._load(), self.attribute, str(self.path))
        with construction(real=real, seed=seed, dtype=dtype), beside(self.path), blamed(self.path):
            if isinstance(value, nn.Module):
                name, value = find_attribute(load_file(self.path), self.attribute, str(self.path))
            return make(value, f"{self.path}:{name}", dict(options or {}))

    def example(self, inputs: Sequence[str] = (), *, seed: int = 0) -> Example:
        if inputs:
            return from_texts(inputs, seed)
        with torch.random.fork_rng(devices=[]), beside(self.path), blamed(self.path):
            torch.manual_seed(seed)
            return _own_example(self._load(), self.text)

    def _load(self) -> ModuleType:
        if self.module is None:
            with construction(real=False):
                self.module = load_file(self.path)
        return self.module


@dataclass
class ModuleSource(Source):
    """An attribute of an installed module."""

    text: str
    name: str
    attribute: str

    def build(
        self,
        *,
        real: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        _, value = find_attribute(load_module(self.name), self.attribute, self.name)
        with construction(real=real, seed=seed, dtype=dtype):
            try:
                return make(value, self.text, dict(options or {}))
            except TypeError as error:
                details = ["name a function that builds the model, or give its arguments as options"]
                raise ModelError(f"`{self.text}` cannot be called: {error}", details=details) from error

    def example(self, inputs: Sequence[str] = (), *, seed: int = 0) -> Example:
        if inputs:
            return from_texts(inputs, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _own_example(load_module(self.name), self.text)


def _own_example(module: ModuleType, text: str) -> Example:
    if not hasattr(module, "example_inputs"):
        raise ModelError(
            f"`{text}` has no example inputs",
            details=[
                "define `example_inputs` beside the model: a dict, a tuple, or a function that returns one",
                "or give them: --input 'input_ids:int64[2,128]<32000'",
            ],
        )
    return from_value(module.example_inputs, text)
