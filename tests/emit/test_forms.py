"""Every form of `rules/print.yaml` does exactly what its op does: value, dtype, strides and gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.utils import _pytree as pytree

from fxpar.emit.calls import Calls
from fxpar.emit.forms import forms, read
from fxpar.emit.text import flat
from fxpar.errors import RuleError

CPU = torch.device("cpu")
OPEN = 2**63 - 1


def f(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).add(0.1).requires_grad_()


def i(*shape: int, high: int = 3) -> torch.Tensor:
    return torch.randint(high, shape)


def b(*shape: int) -> torch.Tensor:
    return torch.rand(*shape) > 0.5


class Sample:
    """The arguments of one call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


S = Sample
UNARY = ["abs", "cos", "sin", "exp", "log", "sqrt", "rsqrt", "reciprocal", "neg", "t"]
UNARY += ["tanh", "sigmoid", "relu", "silu", "contiguous", "detach"]
COMPARED = ["eq", "ne", "lt", "le", "gt", "ge"]


def samples() -> dict[str, list[Sample]]:
    """Calls of every op that has a form, by op, with what may be given beside the bare arguments."""
    mask = b(3, 4)
    found = {f"aten.{name}.default": [S(f(3, 4))] for name in UNARY}
    found |= {f"aten.{name}.Tensor": [S(i(3, 4), i(3, 4))] for name in COMPARED}
    found |= {f"aten.{name}.Scalar": [S(f(3, 4), 0.5), S(i(3, 4), -1)] for name in COMPARED}
    found |= {f"operator.{name}": [S(7, 2)] for name in ("add", "sub", "mul", "floordiv", "mod")}
    return found | {
        "operator.getitem": [S([f(2), f(3)], 1)],
        "aten.add.Tensor": [S(f(3, 4), f(4)), S(f(3, 4), -2), S(f(3, 4), f(4), alpha=2)],
        "aten.sub.Tensor": [S(f(3, 4), f(4)), S(f(3, 4), -2), S(f(3, 4), f(4), alpha=2)],
        "aten.mul.Tensor": [S(f(3, 4), f(4)), S(i(3, 4), 0.5)],
        "aten.div.Tensor": [S(f(3, 4), f(4)), S(i(3, 4), 2)],
        "aten.rsub.Scalar": [S(f(3, 4), 1.0), S(f(3, 4), 1, 2)],
        "aten.pow.Tensor_Scalar": [S(f(3, 4), 2), S(f(3, 4), -0.5)],
        "aten.pow.Tensor_Tensor": [S(f(3, 4), f(4))],
        "aten.floor_divide.default": [S(i(3, 4, high=9), 2), S(i(3, 4, high=9), i(3, 4) + 1)],
        "aten.remainder.Scalar": [S(i(3, 4, high=9), 4)],
        "aten.bitwise_not.default": [S(b(3, 4))],
        "aten.__and__.Tensor": [S(b(3, 4), b(4))],
        "aten.__or__.Tensor": [S(b(3, 4), b(4))],
        "aten.clamp.default": [S(f(3, 4), 0.2), S(f(3, 4), None, 0.7), S(f(3, 4), 0.2, 0.7)],
        "aten.minimum.default": [S(f(3, 4), f(4))],
        "aten.maximum.default": [S(f(3, 4), f(4))],
        "aten.where.self": [S(mask, f(3, 4), f(4))],
        "aten.where.ScalarOther": [S(mask, f(3, 4), float("-inf"))],
        "aten.where.ScalarSelf": [S(mask, 0.0, f(3, 4))],
        "aten.masked_fill.Scalar": [S(f(3, 4), mask, float("inf")), S(i(3, 4), mask, -100)],
        "aten.masked_fill.Tensor": [S(f(3, 4), mask, torch.tensor(2.0))],
        "aten.linear.default": [S(f(2, 3), f(4, 3)), S(f(2, 3), f(4, 3), f(4))],
        "aten.matmul.default": [S(f(2, 3, 4), f(4, 5))],
        "aten.bmm.default": [S(f(2, 3, 4), f(2, 4, 5))],
        "aten.addmm.default": [S(f(5), f(3, 4), f(4, 5)), S(f(5), f(3, 4), f(4, 5), beta=0.5, alpha=2)],
        "aten.baddbmm.default": [S(f(2, 3, 5), f(2, 3, 4), f(2, 4, 5), beta=0.5, alpha=2)],
        "aten.einsum.default": [S("ij,jk->ik", [f(2, 3), f(3, 4)])],
        "aten.embedding.default": [S(f(5, 3), i(2, 4)), S(f(5, 3), i(2, 4), 1, True)],
        "aten.scaled_dot_product_attention.default": [
            S(f(2, 4, 3, 8), f(2, 4, 3, 8), f(2, 4, 3, 8)),
            S(f(2, 4, 3, 8), f(2, 2, 3, 8), f(2, 2, 3, 8), is_causal=True, enable_gqa=True),
            S(f(2, 4, 3, 8), f(2, 4, 3, 8), f(2, 4, 3, 8), f(3, 3), 0.5, scale=0.25),
        ],
        "aten.conv1d.default": [S(f(1, 2, 5), f(3, 2, 2)), S(f(1, 2, 5), f(2, 1, 2), f(2), [2], [1], [1], 2)],
        "aten.conv2d.default": [
            S(f(1, 2, 5, 5), f(3, 2, 2, 2)),
            S(f(1, 2, 5, 5), f(3, 2, 2, 2), f(3), [2, 2], [1, 0]),
            S(f(1, 2, 5, 5), f(2, 1, 2, 2), None, [1, 1], [0, 0], [2, 1], 2),
        ],
        "aten.diff.default": [S(f(3, 4)), S(f(3, 4), 2, 0), S(f(3, 4), prepend=f(3, 1), append=f(3, 1))],
        "aten.full_like.default": [S(f(3, 4), 2.0), S(f(3, 4), 1, dtype=torch.int64, pin_memory=False)],
        "aten.tril.default": [S(f(3, 4)), S(f(3, 4), -1)],
        "aten.triu.default": [S(f(3, 4)), S(f(3, 4), 1)],
        "aten.gelu.default": [S(f(3, 4)), S(f(3, 4), approximate="tanh")],
        "aten.softplus.default": [S(f(3, 4)), S(f(3, 4), 2, 0.5)],
        "aten.softmax.int": [S(f(3, 4), -1), S(f(3, 4), 0, torch.float32)],
        "aten.log_softmax.int": [S(f(3, 4), -1), S(f(3, 4), 0, torch.float32)],
        "aten.layer_norm.default": [
            S(f(3, 4), [4]),
            S(f(3, 4), [4], f(4), f(4), 1e-12, False),
            S(f(3, 4), [4], f(4), None, 0.1),
            S(f(3, 4), [4], None, f(4)),
        ],
        "aten.rms_norm.default": [S(f(3, 4), [4]), S(f(3, 4), [4], f(4), 1e-3)],
        "aten.cross_entropy_loss.default": [
            S(f(3, 4), i(3)),
            *(S(f(3, 4), i(3), f(4).detach(), reduction, 1, 0.1) for reduction in (0, 1, 2)),
        ],
        "aten.dropout.default": [S(f(3, 4), 0.5, True), S(f(3, 4), 0.5, False)],
        "aten.view.default": [S(f(3, 4), [2, -1]), S(f(1), [])],
        "aten.reshape.default": [S(f(3, 4), [2, 6]), S(f(1), [])],
        "aten.expand.default": [S(f(3, 1), [2, -1, 4])],
        "aten.permute.default": [S(f(2, 3, 4), [2, 0, -2])],
        "aten.transpose.int": [S(f(2, 3, 4), 1, -1)],
        "aten.unsqueeze.default": [S(f(3, 4), -1)],
        "aten.squeeze.dim": [S(f(3, 1), 1)],
        "aten.flatten.using_ints": [S(f(2, 3, 4)), S(f(2, 3, 4), 1), S(f(2, 3, 4), 0, 1)],
        "aten.unflatten.int": [S(f(3, 4), 1, [2, -1])],
        "aten.clone.default": [S(f(3, 4).t()), S(f(3, 4).t(), memory_format=torch.contiguous_format)],
        "aten.repeat.default": [S(f(3, 4), [2, 1, 1])],
        "aten.repeat_interleave.self_int": [S(f(3, 4), 2), S(f(3, 4), 2, 1), S(f(3, 4), 2, 1, output_size=8)],
        "aten.split.Tensor": [S(f(3, 4), 2), S(f(3, 4), 2, -1)],
        "aten.split_with_sizes.default": [S(f(3, 4), [1, 2]), S(f(3, 4), [1, 3], -1)],
        "aten.chunk.default": [S(f(3, 4), 2), S(f(3, 4), 2, -1)],
        "aten.unbind.int": [S(f(3, 4)), S(f(3, 4), -1)],
        "aten.cat.default": [S([f(3, 4), f(3, 4)]), S([f(3, 4), f(3, 4)], -1)],
        "aten.stack.default": [S([f(3, 4), f(3, 4)]), S([f(3, 4), f(3, 4)], -1)],
        "aten.pad.default": [
            S(f(3, 4), [1, 0]),
            S(f(3, 4), [1, 0], "constant", 2.0),
            S(f(1, 4), [1, 0], "reflect"),
        ],
        "aten.roll.default": [S(f(3, 4), [1, 2], [0, -1]), S(f(3, 4), [5])],
        "aten.slice.Tensor": [
            S(f(5, 6)),
            S(f(5, 6), 1, 2, OPEN),
            S(f(5, 6), -1, None, -2),
            S(f(5, 6), -2, 1, 4),
            S(f(5, 6), 0, -3, OPEN, 2),
            S(f(5, 6), 1, 4, 99),
        ],
        "aten.select.int": [S(f(3, 4), 0, 1), S(f(3, 4), 1, -1), S(f(3, 4), -2, 0)],
        "aten.index.Tensor": [S(f(3, 4), [None, i(2)]), S(f(3, 4), [i(2, 1), i(2)]), S(f(3, 4), [b(3, 4)])],
        "aten.gather.default": [S(f(3, 4), 1, i(3, 2)), S(f(3, 4), 1, i(3, 2), sparse_grad=False)],
        "aten.sym_size.int": [S(f(3, 4), 1)],
        "aten.sum.default": [S(f(3, 4)), S(f(3, 4), dtype=torch.float32)],
        "aten.sum.dim_IntList": [S(f(3, 4), [0]), S(f(3, 4), [0, -1], True, dtype=torch.float32)],
        "aten.mean.default": [S(f(3, 4)), S(f(3, 4), dtype=torch.float32)],
        "aten.mean.dim": [S(f(3, 4), [0]), S(f(3, 4), [-1], True), S(f(3, 4), [0], dtype=torch.float32)],
        "aten.max.default": [S(f(3, 4))],
        "aten.min.default": [S(f(3, 4))],
        "aten.cumsum.default": [S(f(3, 4), -1), S(f(3, 4), 0, dtype=torch.float32)],
        "aten.topk.default": [S(f(3, 4), 2), S(f(3, 4), 2, 0, False, False)],
        "aten.to.dtype": [S(f(3, 4), torch.float32), S(f(3, 4), torch.float64, False, True)],
        "aten.to.dtype_layout": [
            S(f(3, 4), dtype=torch.float32, layout=torch.strided, device=CPU),
            S(f(3, 4), device=CPU, copy=True),
        ],
        "aten.type_as.default": [S(f(3, 4), torch.ones(1))],
        "aten.arange.default": [S(4), S(4, dtype=torch.float32, device=CPU, pin_memory=False)],
        "aten.arange.start": [S(1, 4), S(1, 4, dtype=torch.float32, device=CPU)],
        "aten.zeros.default": [S([2, 3]), S([], dtype=torch.int64, layout=torch.strided, device=CPU)],
        "aten.ones.default": [S([2, 3]), S([], dtype=torch.int64, device=CPU)],
        "aten.full.default": [S([2, 3], -1), S([], float("nan"), dtype=torch.float64, device=CPU)],
        "aten.zeros_like.default": [S(f(3, 4)), S(f(3, 4), dtype=torch.int64, pin_memory=False)],
        "aten.ones_like.default": [S(f(3, 4)), S(f(3, 4), memory_format=torch.contiguous_format)],
        "aten.new_ones.default": [S(f(3, 4), [2]), S(f(3, 4), [], dtype=torch.bool, pin_memory=False)],
        "aten.new_zeros.default": [S(f(3, 4), [2]), S(f(3, 4), [2, 1], dtype=torch.bool)],
    }


def test_every_form_has_samples() -> None:
    assert sorted(samples()) == sorted(forms())


@pytest.mark.parametrize("op", sorted(forms()))
def test_form_does_what_its_op_does(op: str) -> None:
    texts = []
    for sample in samples()[op]:
        node, scope = traced(target(op), sample)
        calls = Calls(lambda value: value.name)
        texts.append(flat(calls.write(node)))
        expected = outcome(lambda sample=sample: target(op)(*sample.args, **sample.kwargs), scope)
        written = outcome(lambda text=texts[-1], scope=scope: evaluate(text, scope), scope)
        assert_same(expected, written, texts[-1])
    assert not texts[0].startswith("torch.ops.")


def target(op: str) -> Callable[..., Any]:
    """The function that an op's name stands for."""
    namespace, _, name = op.partition(".")
    if namespace == "operator":
        return getattr(operator, name)
    packet, _, overload = name.rpartition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def traced(function: Callable[..., Any], sample: Sample) -> tuple[fx.Node, dict[str, torch.Tensor]]:
    """A node that calls the function, with a placeholder for every tensor, and the tensors by placeholder."""
    graph, scope = fx.Graph(), {}

    def stand_in(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(scope)}")
        node.meta["val"] = scope[node.name] = value
        return node

    args, kwargs = pytree.tree_map(stand_in, (sample.args, sample.kwargs))
    return graph.call_function(function, args, kwargs), scope


def evaluate(text: str, scope: dict[str, torch.Tensor]) -> Any:
    """Run emitted text."""
    return eval(text, {"torch": torch, "F": F, "operator": operator, "device": CPU} | scope)


def outcome(run: Callable[[], Any], scope: dict[str, torch.Tensor]) -> list[Any]:
    """The results of a call and the gradients of their sum; random numbers start from the same state."""
    torch.manual_seed(1)
    results = pytree.tree_leaves(_listed(run()))
    sources = [tensor for tensor in scope.values() if tensor.requires_grad]
    smooth = [result for result in results if isinstance(result, torch.Tensor) and result.requires_grad]
    total = sum(result.to(torch.float64).pow(2).sum() for result in smooth)
    gradients = torch.autograd.grad(total, sources, allow_unused=True) if smooth else []
    return [*results, *gradients]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def assert_same(expected: list[Any], written: list[Any], text: str) -> None:
    """Hold results against each other, bit by bit."""
    assert len(expected) == len(written), text
    for one, other in zip(expected, written):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype, text
            assert one.stride() == other.stride(), text
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=text)
        else:
            assert one == other, text


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], None]:
    """Read a table of forms from a text."""

    def parse(text: str) -> None:
        path = tmp_path / "print.yaml"
        path.write_text(text, encoding="utf-8")
        read(path)

    return parse


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('aten.a.b: "{0}[{slise}]"', "unknown field `slise`"),
        ('aten.a.b: "f({0}, {)"', "has a brace that is no field"),
        ("aten.a.b: 3", "wants a text"),
    ],
)
def test_malformed_form_is_an_error(table: Callable[[str], None], text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        table(text)
    assert str(caught.value).startswith("rules/print.yaml:1:")
