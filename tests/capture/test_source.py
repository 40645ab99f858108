"""Models in files and modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fxpar.capture import capture
from fxpar.capture.source import find
from fxpar.errors import ModelError

FILE = """
import torch
from torch import nn
import beside_{name}

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("table", torch.ones(width))

    def forward(self, x):
        return self.linear(x) * self.table * beside_{name}.FACTOR

def wide(width=8):
    return Net(width)

def broken():
    return 1 / 0

number = 3
example_inputs = {{"x": torch.zeros(2, 4)}}
"""


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = str(abs(hash(request.node.nodeid)))
    (tmp_path / f"beside_{name}.py").write_text("FACTOR = 2")
    path = tmp_path / "torch.py"
    path.write_text(FILE.format(name=name))
    return path


def test_a_class_a_function_and_options(file: Path) -> None:
    for attribute, width in ("Net", 4), ("wide", 8):
        model = find(f"{file}:{attribute}").build()
        assert model.linear.weight.is_meta
        assert model.linear.weight.shape == (width, width)
        assert torch.equal(model.table, torch.ones(width))
    assert find(f"{file}:wide").build(options={"width": 3}).linear.weight.shape == (3, 3)
    assert find(f"{file}:Net").build(dtype=torch.float64).table.dtype == torch.float64
    assert sys.modules["torch"] is torch
    assert str(file.parent) not in sys.path


def test_the_file_alone(file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        find(str(file)).build()
    assert (
        str(caught.value) == f"`{file}` does not say what its model is\n  name one of them: Net, wide, broken"
    )
    file.write_text(file.read_text() + "\nnet = Net()")
    assert find(str(file)).build().linear.weight.is_meta
    file.write_text(file.read_text() + "\nother = Net()\ndef build(): return other")
    assert find(str(file)).build().linear.weight.is_meta


def test_an_instance_is_built_with_each_seed(file: Path) -> None:
    file.write_text(file.read_text() + "\nmodel = Net()")
    source = find(str(file))
    one, two, other = (source.build(real=True, seed=seed).linear.weight for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    with pytest.raises(ModelError, match="is a model already, and takes no option `width`"):
        source.build(options={"width": 3})


def test_examples(file: Path) -> None:
    source = find(f"{file}:Net")
    assert source.example().kwargs["x"].shape == (2, 4)
    assert source.example(["x:float32[3,4]"]).kwargs["x"].shape == (3, 4)
    model = source.build()
    assert source.weights(model) is None
    example = source.example()
    assert capture(model, example.args, example.kwargs).output_names == ("0",)
    file.write_text(file.read_text().replace("example_inputs", "others"))
    with pytest.raises(ModelError, match="has no example inputs"):
        find(f"{file}:Net").example()


def test_errors_in_the_file_name_the_line(file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        find(f"{file}:broken").build()
    line = FILE.splitlines().index("    return 1 / 0") + 1
    assert str(caught.value).splitlines() == [
        f"{file}:{line}:12: ZeroDivisionError: division by zero",
        f"  {line} |     return 1 / 0",
        "     |            ^",
    ]
    fresh = file.with_name("fresh.py")
    fresh.write_text("x = (")
    with pytest.raises(ModelError, match=r"fresh\.py:1:5: SyntaxError"):
        find(str(fresh)).build()
    assert "fxpar_model_fresh" not in sys.modules


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nothing", "has no `nothing`\n  name one of them: Net, wide, broken"),
        ("number", "is a int, and no model, class or function"),
        ("nn.Linear", "TypeError"),
        ("torch.ones", "TypeError"),
    ],
)
def test_attributes_that_make_no_model(file: Path, attribute: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find(f"{file}:{attribute}").build()


def test_modules() -> None:
    assert find("torch.nn:Linear").build(options={"in_features": 2, "out_features": 3}).weight.is_meta
    with pytest.raises(ModelError, match=r"`torch\.nn:Linear` cannot be called: "):
        find("torch.nn:Linear").build()
    with pytest.raises(ModelError, match="there is no module `no_such_module`"):
        find("no_such_module:x").build()
    with pytest.raises(ModelError, match=r"there is no module `torch\.no_such`"):
        find("torch.no_such:x").build()


@pytest.mark.parametrize("text", ["nothing", "a/b", "a b:c", ""])
def test_texts_that_name_nothing(text: str) -> None:
    with pytest.raises(ModelError, match="names no model"):
        find(text)


def test_no_such_file() -> None:
    with pytest.raises(ModelError, match=r"there is no file `nothing\.py`"):
        find("nothing.py:build")
