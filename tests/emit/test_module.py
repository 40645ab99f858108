"""The text of emitted modules: accepted, formatted, the same each time, and no longer for more layers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._dynamo.testing import CompileCounter

import fxpar.runtime  # noqa: F401 - registers the collectives
from fxpar.capture import Program, capture
from fxpar.emit import emit_module, load_module
from fxpar.errors import EmitError
from fxpar.mesh import GroupIndex, GroupName
from fxpar.runtime.module import compile_layers

ROOT = Path(__file__).parents[2]


def decoder(tiny: ModuleType, layers: int) -> Program:
    inputs = {"ids": torch.randint(32, (2, 5)), "targets": torch.randint(32, (2, 5))}
    return capture(tiny.Decoder(layers), kwargs=inputs)


def ruff(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    """Run ruff with the project's settings on a text."""
    run = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "-"]
    return subprocess.run(run, input=text, capture_output=True, text=True, cwd=ROOT, check=False)


def assert_clean(text: str) -> None:
    formatted = ruff(["format", "--diff"], text)
    assert formatted.returncode == 0, formatted.stdout
    checked = ruff(["check"], text)
    assert checked.returncode == 0, checked.stdout


def test_golden(tiny: ModuleType, text_of: Callable[..., str], golden: Callable[[str, str], None]) -> None:
    text = text_of(decoder(tiny, 3), title="A decoder, stage 0 of 1.", plan="all whole", source="sha256 1234")
    golden("decoder.py", text)
    assert_clean(text)


def test_same_text_again(tiny: ModuleType, text_of: Callable[..., str]) -> None:
    assert text_of(decoder(tiny, 2)) == text_of(decoder(tiny, 2))


def test_more_layers_are_no_more_text(tiny: ModuleType, text_of: Callable[..., str]) -> None:
    few, many = (text_of(decoder(tiny, layers)) for layers in (2, 8))
    assert len(few.splitlines()) == len(many.splitlines())
    assert "    for layer in self.blocks:\n" in many


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_layers_are_compiled_once(
    tiny: ModuleType, text_of: Callable[..., str], module_of: Callable[..., nn.Module]
) -> None:
    program = decoder(tiny, 4)
    module = module_of(program, text_of(program))
    inputs = {"ids": torch.randint(32, (2, 5)), "targets": torch.randint(32, (2, 5))}
    expected, _ = module(**inputs)
    counter = CompileCounter()
    compile_layers(module, backend=counter, fullgraph=True)
    found, _ = module(**inputs)
    assert counter.frame_count == 1
    torch.testing.assert_close(found, expected)


def test_whole_module_compiles(
    tiny: ModuleType, text_of: Callable[..., str], module_of: Callable[..., nn.Module]
) -> None:
    program = decoder(tiny, 2)
    module = module_of(program, text_of(program))
    inputs = {"ids": torch.randint(32, (2, 5)), "targets": torch.randint(32, (2, 5))}
    expected, _ = module(**inputs)
    found, _ = torch.compile(module, backend="eager", fullgraph=True)(**inputs)
    torch.testing.assert_close(found, expected)


def test_new_tensors_follow_the_inputs(tiny: ModuleType, text_of: Callable[..., str]) -> None:
    program = decoder(tiny, 2)
    module = load_module(text_of(program))(device="meta")
    inputs = {"ids": torch.zeros(2, 5, dtype=torch.int64, device="meta"), "targets": None}
    inputs["targets"] = inputs["ids"]
    loss, logits = module(**inputs)
    assert loss.is_meta
    assert logits.shape == (2, 5, 32)


class Number(int):
    """A number that only tells an op from others."""


class Graph:
    """A flat graph made by hand: two sharded layers, with what passes write into `meta`."""

    modules = {"": "Model", "layers": "ModuleList"}
    modules |= {f"layers.{i}": "Layer" for i in range(3)} | {f"layers.{i}.up": "Linear" for i in range(3)}

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.seed: fx.Node | None = None

    def placeholder(self, kind: str, name: str, *shape: int, **meta: Any) -> fx.Node:
        node = self.graph.placeholder(name.replace(".", "_"))
        node.meta = {"kind": kind, "name": name, "val": torch.empty(shape), "module": "", "grad": True} | meta
        return node

    def call(self, target: Any, *args: Any, module: str = "", **meta: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {"module": module, "call": 0, "source": "model.py:7", "val": torch.empty(2, 8)} | meta
        return node

    def layer(self, index: int, x: fx.Node, weight: fx.Node, seed: fx.Node) -> fx.Node:
        path = f"layers.{index}"
        rule = {"rule": "splits/default.yaml:3", "dims": ("b", "hidden")}
        ops = torch.ops.fxpar
        x = self.call(ops.sum_gradient.default, x, GroupName("tp"), module=path, **rule)
        up = self.call(torch.ops.aten.linear.default, x, weight, module=f"{path}.up", dims=("b", "ffn"))
        stream = (seed, Number(4 + 2 * index), [GroupIndex("tp")])
        dropped = self.call(ops.dropout.default, up, 0.1, True, *stream, module=path)
        return self.call(
            ops.all_reduce.default, dropped, GroupName("dp+cp"), module=path, placement="Invariant", **rule
        )

    def whole(self) -> fx.Graph:
        notes = {
            "dims": ("ffn", "hidden"),
            "placement": "Shard(0, ffn) over tp",
            "rule": "splits/default.yaml:3",
        }
        weights = [self.placeholder("parameter", f"layers.{i}.up.weight", 8, 8, **notes) for i in range(3)]
        x = self.placeholder("received", "add_7", 2, 8, dims=("b", "hidden"))
        seed = self.placeholder("prepared", "seed", val=0)
        for index, weight in enumerate(weights):
            x = self.layer(index, x, weight, seed)
        self.graph.output((x,))
        return self.graph


def test_golden_of_a_stage(golden: Callable[[str, str], None]) -> None:
    text = emit_module(
        Graph().whole(),
        class_name="Stage1",
        title="Stage 1 of 2 of Model.",
        modules=Graph.modules,
        plan="heads: tp, ffn: tp; mesh dp=2 cp=2 tp=2",
        source="sha256 5678",
    )
    golden("stage.py", text)
    assert_clean(text)


def test_input_of_any_name_is_right() -> None:
    made = Graph()
    names = ["device", "layer", "i", "l"]
    given = [made.placeholder("input", name, 2) for name in names]
    new = made.call(torch.ops.aten.zeros.default, [2], creates=True)
    total = made.call(torch.ops.aten.add.Tensor, new, given[0])
    for node in given[1:]:
        total = made.call(torch.ops.aten.add.Tensor, total, node)
    made.graph.output((total,))
    text = emit_module(made.graph, class_name="Sum", title="Sum.", modules={"": "Sum"})
    inputs = {node.name: torch.full((2,), 10.0**k) for k, node in enumerate(given)}
    (found,) = load_module(text)()(**inputs)
    assert found.tolist() == [1111.0, 1111.0]


def test_input_of_any_name_says_where_new_tensors_go() -> None:
    class Sum(nn.Module):
        def forward(self, i: torch.Tensor, device: torch.Tensor) -> torch.Tensor:
            return (i * device).sum() + torch.linspace(0, 1, 3).sum()

    inputs = {"i": torch.full((2,), 3.0), "device": torch.full((2,), 10.0)}
    program = capture(Sum(), kwargs=inputs)
    text = emit_module(program.graph, class_name="Sum", title="Sum.", modules={"": "Sum"})
    assert "        device = i_2.device\n" in text
    given = program.graph.find_nodes(op="placeholder")
    (found,) = load_module(text)()(**{node.name: inputs[node.meta["name"]] for node in given})
    assert found.item() == 61.5


def test_unused_input_is_taken() -> None:
    made = Graph()
    x = made.placeholder("input", "x", 2)
    made.placeholder("input", "unused", 2)
    made.graph.output((x, None, 3))
    text = emit_module(made.graph, class_name="Same", title="Same.", modules={"": "Same"})
    assert_clean(text)
    x = torch.ones(2)
    assert load_module(text)()(x=x, unused=x) == (x, None, 3)


def test_foreign_function_is_an_error() -> None:
    made = Graph()
    made.graph.output((made.call(subprocess.run, made.placeholder("input", "x", 2)),))
    with pytest.raises(EmitError) as caught:
        emit_module(made.graph, class_name="Run", title="Run.", modules={"": "Run"})
    assert str(caught.value) == "`subprocess.run` in the graph is no op"


def test_local_autograd_function_is_an_error() -> None:
    class Local(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
            return grad * 2

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Local.apply(x)

    program = capture(Model(), kwargs={"x": torch.ones(2)})
    with pytest.raises(EmitError, match="define it at the top of an importable module"):
        emit_module(program.graph, class_name="Model", title="Model.", modules=program.modules)
