"""Fusions: what is found, what is left, and that values and gradients stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxpar.axes.schema import op_name
from fxpar.capture.capture import capture
from fxpar.capture.interpret import run
from fxpar.errors import RuleError
from fxpar.shard import fusion
from fxpar.shard.fuse import fuse

RULES = fusion.load([Path(__file__).parents[2] / "rules"])
X, W = (2, 3, 8), (8,)
Q, K = (2, 8, 5, 4), (2, 2, 5, 4)

Formula = Callable[..., Tensor]


class Model(nn.Module):
    """A formula of tensors as a model."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.formula(x, y, z)


def gelu_tanh(x: Tensor, *_: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_erf(x: Tensor, *_: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def rms_norm(x: Tensor, w: Tensor, *_: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, repeated(k), repeated(v), is_causal=True, scale=0.3)


def repeated(x: Tensor, times: int = 4) -> Tensor:
    b, n, s, d = x.shape
    return x[:, :, None].expand(b, n, times, s, d).reshape(b, n * times, s, d)


def graph_of(formula: Formula, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> fx.Graph:
    inputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
    return capture(Model(formula), tuple(inputs)).graph


def ops(graph: fx.Graph) -> list[str]:
    return [op_name(node).split(".")[1] for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("formula", "shapes", "into"),
    [
        (gelu_tanh, (X, W, W), "gelu"),
        (gelu_erf, (X, W, W), "gelu"),
        (rms_norm, (X, W, W), "rms_norm"),
        (lambda x, w, _: x * torch.rsqrt(1e-5 + x.pow(2).mean(-1, True)) * w, (X, W, W), "rms_norm"),
        (grouped, (Q, K, K), "scaled_dot_product_attention"),
    ],
)
def test_one_op_with_the_same_gradients(formula: Formula, shapes: list[tuple[int, ...]], into: str) -> None:
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    names = dict(zip("xyz", inputs))
    program = capture(Model(formula), tuple(inputs))
    (expected,) = run(program, names)
    fuse(program.graph, RULES)
    program.graph.lint()
    assert ops(program.graph) == [into]
    (found,) = run(program, names)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    pairs = [torch.autograd.grad(o, inputs, weight, allow_unused=True) for o in (found, expected)]
    for ours, theirs in zip(*pairs):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("formula", "shapes"),
    [
        # another constant, another power, another dim
        (lambda x, *_: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))), (X, W, W)),
        (lambda x, w, _: w * (x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6)), (X, W, W)),
        (lambda x, w, _: w * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)), (X, W, W)),
        # another tensor is normalised than is scaled
        (lambda x, w, z: w * (z * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), (X, W, X)),
        # the weight is no vector of the last dim; eps is a tensor
        (rms_norm, (X, (3, 8), W)),
        (lambda x, w, e: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e)), (X, W, ())),
        # heads in another order, only one of both repeated, a mask
        (lambda q, k, v: F.scaled_dot_product_attention(q, k.repeat(1, 4, 1, 1), repeated(v)), (Q, K, K)),
        (lambda q, k, v: F.scaled_dot_product_attention(q, k, repeated(v)), (Q, Q, K)),
        (
            lambda q, k, v: F.scaled_dot_product_attention(
                q, repeated(k), repeated(v), torch.eye(5, dtype=torch.bool)
            ),
            (Q, K, K),
        ),
    ],
)
def test_what_is_something_else_stays(formula: Formula, shapes: list[tuple[int, ...]]) -> None:
    graph = graph_of(formula, *shapes)
    before = ops(graph)
    fuse(graph, RULES)
    assert ops(graph) == before


def test_a_value_between_with_another_use_stays() -> None:
    def formula(x: Tensor, w: Tensor, *_: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return w * (x * torch.rsqrt(mean + 1e-6)) + mean

    graph = graph_of(formula, X, W, W)
    fuse(graph, RULES)
    assert "rms_norm" not in ops(graph)


def test_narrow_dtypes_round_in_between() -> None:
    graph = graph_of(rms_norm, X, W, W, dtype=torch.bfloat16)
    fuse(graph, RULES)
    assert "rms_norm" not in ops(graph)


def test_the_last_op_becomes_the_new_one() -> None:
    graph = graph_of(gelu_tanh, X, W, W)
    last = next(iter(graph.output_node().all_input_nodes))
    said = dict(last.meta)
    fuse(graph, RULES)
    (node,) = (node for node in graph.nodes if node.op == "call_function")
    assert node is last
    assert node.meta == said


RULE = "- fusion: x\n  ops: mul(x, 2.0)\n  shapes: {x: [...]}\n  into: aten.add.Tensor(x, x)\n"


def load(folder: Path, text: str) -> list[fusion.Fusion]:
    (folder / "mine/fusions").mkdir(parents=True)
    (folder / "mine/fusions/x.yaml").write_text(text)
    return fusion.load([folder / "mine"])


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    graph = graph_of(lambda x, *_: x * 2.0, X, W, W)
    fuse(graph, load(tmp_path, RULE))
    assert ops(graph) == ["add"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "mul(x, 2.0)",
            "mul(x,",
            "mine/fusions/x.yaml:2:8: cannot be read: '(' was never closed (<unknown>, line 1)\n"
            "  2 |   ops: mul(x,\n    |        ^\n  write calls, such as `mul(x, add(y, 1.0))`",
        ),
        (
            "ops: mul(x, 2.0)",
            "ops: x",
            "mine/fusions/x.yaml:2:8: is no call of an op\n  2 |   ops: x\n    |        ^\n"
            "  write calls, such as `mul(x, add(y, 1.0))`",
        ),
        (
            "mul(x, 2.0)",
            "mul(x, y > 2)",
            "mine/fusions/x.yaml:2:8: cannot be read: `y > 2` is neither a call, a name, a list nor a number\n"
            "  2 |   ops: mul(x, y > 2)\n    |        ^\n  write calls, such as `mul(x, add(y, 1.0))`",
        ),
        (
            "{x: [...]}",
            "{x: [...], y: [a]}",
            "mine/fusions/x.yaml:3:22: unknown key `y`\n  3 |   shapes: {x: [...], y: [a]}\n"
            "    |                      ^\n  allowed: x",
        ),
        (
            "aten.add.Tensor(x, x)",
            "aten.add.Tensor(x, xs)",
            "mine/fusions/x.yaml:4:9: `xs` stands nowhere in `ops`\n  4 |   into: aten.add.Tensor(x, xs)\n"
            "    |         ^\n  did you mean `x`?\n  allowed: ..., x",
        ),
        (
            "aten.add.Tensor",
            "add",
            "mine/fusions/x.yaml:4:9: torch has no op `add`\n  4 |   into: add(x, x)\n    |         ^\n"
            "  write it whole, such as `aten.gelu.default`",
        ),
        (
            "  into",
            "  dtypes: [float31]\n  into",
            "mine/fusions/x.yaml:4:12: torch has no dtype `float31`\n  4 |   dtypes: [float31]\n"
            "    |            ^",
        ),
    ],
)
def test_malformed_rules(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        load(tmp_path, RULE.replace(old, new))
    assert str(caught.value) == message
