"""Hugging Face checkpoints by a model's own names: prefixes, renamed keys, and weights stored in pieces.

What key becomes which name is transformers' knowledge (`get_model_conversion_mapping`, as used by `from_pretrained`);
nothing here knows a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from fxpar.capture.capture import tied_names
from fxpar.checkpoint.sharded import open_weights
from fxpar.checkpoint.weights import Box, Weights, assemble, checked, compare, read_same
from fxpar.errors import CheckpointError


class FolderWeights:
    """The weights of a folder under the names that a model has for them, without ties.

    Of a tied tensor that the folder has under several names all have to be the same.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Raises CheckpointError that lists all names that are missing, unexpected, or of another size."""
        self._files = open_weights(folder)
        self._ties = tied_names(model)
        state = model.state_dict(keep_vars=True)
        self._keys: dict[str, str] = {}
        self._copies: dict[str, dict[str, str]] = {}
        self._made: dict[str, _Recipe] = {}
        self._resolve(model, state)
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in self._ties}
        compare(wanted, self, _unwanted(model, self.names()))
        self._keys = {name: key for name, key in self._keys.items() if name in wanted}

    def names(self) -> list[str]:
        """The names of all tensors."""
        return [*self._keys, *self._made]

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the whole tensor."""
        if name in self._made:
            return tuple(self._made[name].make(meta=True)[name].shape)
        return self._files.shape(self._key(name))

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype in the files."""
        if name in self._made:
            return self._made[name].make(meta=True)[name].dtype
        return self._files.dtype(self._key(name))

    def read(self, name: str, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """The boxes as one tensor. A tensor that is stored in pieces is put together whole first."""
        if name not in self._made:
            first = self._ties.get(name, name)
            copies = [key for key in self._copies.get(first, {}).values() if key != self._key(name)]
            return read_same(self._files, [self._key(name), *copies], boxes)
        tensor = self._made[name].make()[name]
        wanted = checked(name, tuple(tensor.shape), boxes)
        return assemble(wanted, [tensor[box.slices] for box in wanted]).clone()

    def _key(self, name: str) -> str:
        name = self._ties.get(name, name)
        if name not in self._keys:
            raise CheckpointError(f"there are no weights for `{name}`")
        return self._keys[name]

    def _resolve(self, model: Any, state: dict[str, torch.Tensor]) -> None:
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        recipes: dict[str, _Recipe] = {}
        prefix = model.base_model_prefix
        for key in sorted(self._files.names(), key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:
                name, pattern = rename_source_key(key, [], [], prefix, state)
            if pattern is None:
                first = self._ties.get(name, name)
                self._keys.setdefault(first, key)
                self._copies.setdefault(first, {}).setdefault(name, key)
                continue
            converter = next(entry for entry in converters if pattern in entry.source_patterns)
            recipe = recipes.setdefault(name, _Recipe(self._files, model, name, converter))
            recipe.sources.append((key, pattern))
        for recipe in recipes.values():
            self._made |= dict.fromkeys(recipe.make(meta=True), recipe)


@dataclass
class _Recipe:
    """Tensors that are made of several keys by one of transformers' converters."""

    files: Weights
    model: Any
    target: str
    converter: Any
    sources: list[tuple[str, str]] = field(default_factory=list)

    def make(self, *, meta: bool = False) -> dict[str, torch.Tensor]:
        converter = deepcopy(self.converter)
        for key, pattern in self.sources:
            shape, dtype = self.files.shape(key), self.files.dtype(key)
            tensor = torch.empty(shape, dtype=dtype, device="meta") if meta else self.files.read(key)
            converter.add_tensor(self.target, key, pattern, tensor)
        made = converter.convert(self.target, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _unwanted(model: Any, names: Sequence[str]) -> list[str]:
    """Names in the files that may be left: buffers that are not persistent, and those that the class ignores."""
    buffers = {name for name, _ in model.named_buffers()}
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return [
        name for name in names if name in buffers or any(re.search(pattern, name) for pattern in patterns)
    ]
