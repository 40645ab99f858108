"""What emitted modules are built with."""

from __future__ import annotations

import torch
from torch import nn

from fxpar.runtime.module import buffer, layers, parameter, retie, submodule, tie


def build(device: str = "cpu") -> nn.Module:
    root = nn.Module()
    parameter(root, "model.tokens.weight", (4, 2), torch.float64, device)
    for number in range(2, 4):
        submodule(root, f"model.layers.{number}", nn.Linear(2, 2, device=device))
    parameter(root, "model.frozen", (), torch.float32, device, requires_grad=False)
    buffer(root, "model.mean", (2,), torch.float32, device)
    buffer(root, "model.table", (2,), torch.int64, device, persistent=False)
    tie(root, "head.weight", "model.tokens.weight")
    tie(root, "head.table", "model.table")
    return root


def test_names_are_those_given() -> None:
    root = build()
    assert list(root.state_dict()) == [
        "model.frozen",
        "model.mean",
        "model.tokens.weight",
        *(f"model.layers.{number}.{name}" for number in (2, 3) for name in ("weight", "bias")),
        "head.weight",
    ]
    assert not root.model.frozen.requires_grad
    assert root.model.tokens.weight.requires_grad
    assert {name for name, _ in root.named_buffers()} == {"model.mean", "model.table"}


def test_numbers_are_names() -> None:
    found = build().model.layers
    assert found[3] is getattr(found, "3")
    assert found[2:4] == list(found) == [found[2], found[3]]
    assert len(found) == 2


def test_ties_survive_materialisation() -> None:
    root = build("meta").to_empty(device="cpu")
    retie(root)
    assert root.head.weight is root.model.tokens.weight
    assert root.head.table is root.model.table
    assert len(list(root.parameters())) == 6


def test_layers_are_what_is_no_container() -> None:
    root = build()
    assert list(layers(root)) == [root.model.layers[2], root.model.layers[3]]
