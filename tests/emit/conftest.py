"""What tests of emitted modules share: a tiny model, and the way from a program to a module with its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from fxpar.capture import Program
from fxpar.emit import emit_module, load_module
from fxpar.runtime.module import retie


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The tiny decoder's module."""
    spec = importlib.util.spec_from_file_location("emit_tiny", Path(__file__).parent / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def text_of() -> Callable[..., str]:
    """Return `text_of(program)`: the text of the program's module."""

    def emit(program: Program, **options: Any) -> str:
        settings = {"class_name": "Whole", "title": "The whole model."} | options
        names = {"modules": program.modules, "ties": program.ties, "persistent": program.persistent}
        return emit_module(program.graph, **settings, **names)

    return emit


@pytest.fixture(scope="session")
def module_of() -> Callable[..., nn.Module]:
    """Return `module_of(program, text)`: the module of a text, with a copy of the program's weights."""

    def build(program: Program, text: str, *arguments: Any) -> nn.Module:
        module = load_module(text)(*arguments, device="meta").to_empty(device="cpu")
        retie(module)
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                tensor.copy_(program.tensors[name])
        return module.train(program.training)

    return build
