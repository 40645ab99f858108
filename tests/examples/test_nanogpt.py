"""The example model is a language model as it should be, before anything splits it."""

from __future__ import annotations

import importlib.util
import sys
from math import log, sqrt
from pathlib import Path
from types import ModuleType

import pytest
import torch

SOURCE = Path(__file__).parents[2] / "examples" / "nanogpt.py"


@pytest.fixture(scope="module")
def nanogpt() -> ModuleType:
    """The example as a module; it lies outside of every package."""
    spec = importlib.util.spec_from_file_location("nanogpt", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module
    spec.loader.exec_module(module)
    return module


def test_loss_and_gradients(nanogpt: ModuleType) -> None:
    model, inputs = nanogpt.build(), nanogpt.example_inputs()
    logits, loss = model(**inputs)
    assert logits.shape == (4, 64, 512)
    assert loss.item() == pytest.approx(log(512), abs=0.2)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_no_targets_no_loss(nanogpt: ModuleType) -> None:
    logits, loss = nanogpt.build()(nanogpt.example_inputs()["idx"][:, :7])
    assert logits.shape == (4, 7, 512)
    assert loss is None


def test_a_later_token_changes_nothing_before_it(nanogpt: ModuleType) -> None:
    model, idx = nanogpt.build(), nanogpt.example_inputs()["idx"]
    changed = idx.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 512
    before, _ = model(idx)
    after, _ = model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_uncounted_targets(nanogpt: ModuleType) -> None:
    model, inputs = nanogpt.build(), nanogpt.example_inputs()
    inputs["targets"][1:] = -1
    _, masked = model(**inputs)
    _, first = model(inputs["idx"][:1], inputs["targets"][:1])
    torch.testing.assert_close(masked, first)


def test_head_is_the_embedding(nanogpt: ModuleType) -> None:
    model = nanogpt.build()
    assert model.head.weight is model.tokens.weight


def test_initial_weights(nanogpt: ModuleType) -> None:
    model = nanogpt.build()
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.attention.proj.weight.std().item() == pytest.approx(0.02 / sqrt(4), rel=0.1)
    assert block.attention.qkv.bias.abs().sum() == 0
    assert (block.norm_1.weight == 1).all()


def test_without_biases(nanogpt: ModuleType) -> None:
    model = nanogpt.GPT(nanogpt.GPTConfig(bias=False))
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    model(**nanogpt.example_inputs())


def test_dropout_only_while_training(nanogpt: ModuleType) -> None:
    model, inputs = nanogpt.GPT(nanogpt.GPTConfig(dropout=0.5)), nanogpt.example_inputs()
    assert not torch.equal(model(**inputs)[0], model(**inputs)[0])
    model.eval()
    assert torch.equal(model(**inputs)[0], model(**inputs)[0])
