"""The captured program: names, metadata, modes, and a model that is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import Program, capture, run
from fxpar.errors import CaptureError


class Net(nn.Module):
    """Convolution, batch norm, a block that is called twice, and nested inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.drop = nn.Dropout(0.0)
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.scale = torch.full((4,), 2.0)

    def forward(self, batch: dict[str, Any], *more: Tensor, flag: bool = True, **extra: Any) -> Any:
        x = self.norm(self.conv(batch["image"])).mean((2, 3))
        x = self.blocks[0](self.drop(self.blocks[0](x))) * self.scale + self.shift
        x = x + sum(more) + torch.zeros(4) + extra["bias"]
        return Result(x.to(x.dtype).view(-1), {"flag": flag, "none": None, "sum": x.sum()})


class Result(NamedTuple):
    flat: Tensor
    rest: dict[str, Any]


def call(seed: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(3, 2, 5, 5, generator=draw)
    more = torch.randn(3, 4, generator=draw), torch.randn(4, generator=draw)
    return ({"image": image}, *more), {"flag": False, "bias": torch.randn(3, 1, generator=draw)}


def captured(model: nn.Module | None = None) -> Program:
    args, kwargs = call()
    return capture(model or Net(), args, kwargs)


def named(seed: int) -> dict[str, Any]:
    args, kwargs = call(seed)
    return {"batch": args[0], "more": args[1:], **kwargs}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm(training: bool) -> None:
    model, same = Net().train(training), Net().train(training)
    same.load_state_dict(model.state_dict())
    program = captured(model)
    for seed in range(3):
        args, kwargs = call(seed)
        expected = same(*args, **kwargs)
        got = run(program, named(seed))
        torch.testing.assert_close(got[0], expected.flat)
        assert got[1:3] == [False, None]
        torch.testing.assert_close(got[3], expected.rest["sum"])
        expected.flat.sum().backward()
        got[0].sum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), same.named_parameters()):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), (_, other) in zip(model.named_buffers(), same.named_buffers()):
        torch.testing.assert_close(one, other, msg=name)


def test_names() -> None:
    program = captured()
    assert program.output_names == ("flat", "rest.flag", "rest.none", "rest.sum")
    names = ["batch.image", "more.0", "more.1", "flag", "bias"]
    assert [entry.name for entry in program.inputs] == names
    assert [entry.placeholder for entry in program.inputs] == [
        "batch_image",
        "more_0",
        "more_1",
        None,
        "bias",
    ]
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    kinds = [node.meta["kind"] for node in placeholders]
    assert kinds == sorted(kinds, key=["parameter", "buffer", "constant", "input"].index)
    assert program.placeholder("blocks.0.weight").name == "blocks_0_weight"
    assert program.modules["blocks.0"] == "Linear"
    assert "scale" in program.tensors
    assert "shift" not in program.persistent
    assert "norm.running_mean" in program.persistent


def test_metadata() -> None:
    nodes = {node.name: node for node in captured().graph.nodes}
    assert (nodes["linear"].meta["module"], nodes["linear"].meta["call"]) == ("blocks.0", 0)
    assert (nodes["linear_1"].meta["module"], nodes["linear_1"].meta["call"]) == ("blocks.0", 1)
    assert nodes["linear"].meta["source"].startswith("test_capture.py:")
    assert nodes["zeros"].meta["creates"]
    assert nodes["zeros"].kwargs == {"dtype": torch.float32}
    assert nodes["linear_1"].meta["grad"]
    assert not nodes["zeros"].meta["grad"]
    assert nodes["copy"].meta["update"] == "norm.num_batches_tracked"


def test_two_captures_are_the_same_text() -> None:
    assert str(captured().graph) == str(captured().graph)


def test_dropout_that_drops_nothing_is_gone() -> None:
    model = Net()
    assert "dropout" not in str(captured(model).graph)
    model.drop.p = 0.5
    assert "dropout" in str(captured(model).graph)
    assert "dropout" not in str(captured(model.eval()).graph)


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    state, random = dict(vars(model)), torch.get_rng_state()
    with torch.no_grad():
        captured(model)
        assert not torch.is_grad_enabled()
    assert vars(model) == state
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


class Failing(nn.Module):
    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        with torch.no_grad():
            return self.body(y)


def branch(y: Tensor) -> Tensor:
    return y if y.sum() > 0 else -y


def wrong(y: Tensor) -> Tensor:
    return y @ y


@pytest.mark.parametrize(
    ("body", "reason"),
    [(branch, "the line depends on the values of a tensor"), (wrong, "RuntimeError")],
)
def test_failures_name_class_and_line(
    body: Callable[[Tensor], Tensor], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Failing(body)
    weight = model.linear.weight
    with pytest.raises(CaptureError, match=reason) as caught:
        capture(model, (torch.randn(3, 4),))
    text = str(caught.value)
    assert text.startswith("`Failing` cannot be captured: test_capture.py:")
    assert f"in {body.__name__}: return" in text
    assert model.linear.weight is weight
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(CaptureError, match=r"do not fit `Failing.forward`: missing a required argument: 'x'"):
        capture(Failing(wrong))
    with pytest.raises(CaptureError, match="input `x` of `Failing` is a object"):
        capture(Failing(wrong), (object(),))


class Recurrent(nn.Module):
    """Keeps its parameters in a list beside their registration."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.lstm(x)[0] * y


def test_parameters_in_attributes() -> None:
    model = Recurrent()
    x = torch.randn(2, 3, 4)
    program = capture(model, (x, x))
    assert {node.meta["kind"] for node in program.graph.nodes if node.op == "placeholder"} == {
        "parameter",
        "input",
    }
    assert [entry.placeholder for entry in program.inputs] == ["x", "y"]
    torch.testing.assert_close(run(program, {"x": x, "y": x + 1})[0], model(x, x + 1))


def test_large_models_take_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2**20, 2**20), nn.Linear(2**20, 2))
    program = capture(model, (torch.empty(2**20, 2**20, device="meta"),))
    assert program.tensors["0.weight"].numel() == 2**40
