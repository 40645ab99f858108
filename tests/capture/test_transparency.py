"""A captured model computes what the model computes: outputs and every gradient, also on other inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from fxpar.capture import capture, run

_spec = importlib.util.spec_from_file_location("capture_zoo", Path(__file__).parent / "zoo.py")
assert _spec is not None
assert _spec.loader is not None
zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(zoo)


def _gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def _compare(model: torch.nn.Module, program: Any, inputs: dict[str, torch.Tensor]) -> None:
    expected = model(**inputs)
    got = run(program, inputs)
    leaves = pytree.tree_leaves(expected)
    assert len(leaves) == len(got)
    for name, one, other in zip(program.output_names, leaves, got):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    wanted = _gradients(model, expected["loss"])
    found = _gradients(model, got[program.output_names.index("loss")])
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", zoo.MODELS)
def test_loss_and_gradients(name: str, attention: str, training: bool) -> None:
    model = zoo.model(name, attention).train(training)
    inputs = zoo.inputs(name)
    program = capture(model, kwargs=inputs)
    _compare(model, program, inputs)
    _compare(model, program, zoo.inputs(name, seed=1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_meta_gives_the_same_graph(name: str) -> None:
    real = capture(zoo.model(name), kwargs=zoo.inputs(name))
    with torch.device("meta"):
        model = zoo.model(name)
    meta = capture(model, kwargs={key: value.to("meta") for key, value in zoo.inputs(name).items()})
    assert str(meta.graph) == str(real.graph)
    assert meta.ties == real.ties
    assert all(tensor.is_meta for name, tensor in meta.tensors.items() if name in meta.persistent)
