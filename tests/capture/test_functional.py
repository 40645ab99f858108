"""In-place ops in a model: the graph without them gives the same values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture, run
from fxpar.errors import CaptureError

Body = Callable[["Model", Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Calls a function on a value with a gradient, and on the input."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("table", torch.zeros(4, dtype=torch.float64))
        self.plain = torch.zeros(4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.linear(x), x)


def op_on_value(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y * 2
    z.add_(x).mul_(x)
    return z


def masked_fill(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y + 1
    z.masked_fill_(x > 0, 3.0)
    return z * y


def index_put(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    z[torch.tensor([0, 2]), torch.tensor([1, 3])] = x[0, :2]
    z[x > 0] = 0.5
    return z


def column(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    z[:, 0] = x[:, 1]
    z[:, 1:3] *= 2
    z[:, -1] = 1.0
    return z * z


def view_before(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    later = z[:, 1:].t()
    z.mul_(x)
    return later.sum() + z


def view_of_view(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    flat = z.view(-1)
    part = z.t()[1:].unsqueeze(0)
    part.squeeze(0).add_(x.t()[1:])
    return flat.reshape(3, 4) * part.sum() + z


def two_views(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    first, second = z[0], z[1]
    first.add_(second)
    second.add_(first, alpha=3)
    first.sub_(x[0])
    return z.sum(0) + first + second


def in_place_chain(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.clone()
    other = z.add_(1)
    other.mul_(x)
    z.div_(2)
    return other + z


def relu(_: Model, y: Tensor, x: Tensor) -> Tensor:
    return nn.functional.relu(y, inplace=True) + nn.functional.dropout(x, 0.0, inplace=True)


def wider(_: Model, y: Tensor, x: Tensor) -> Tensor:
    narrow = torch.zeros(3, 4, dtype=torch.float32)
    narrow.add_(y)
    narrow.copy_(narrow + x)
    return narrow.double() * y


def broadcast_copy(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = torch.empty(3, 4, dtype=torch.float64)
    z.copy_(y[0])
    z[1].zero_()
    z[2].fill_(x[0, 0])
    return z


def diagonal(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y[:, :3].clone()
    z.diagonal().add_(x[0, :3])
    return z


def permuted(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.view(3, 2, 2).clone()
    z.permute(2, 0, 1).select(0, 1).mul_(x[:, :2])
    z.narrow(1, 0, 1).add_(1)
    return z.flatten(1)


def scatter(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z.scatter_(1, x.argsort(-1)[:, :2], 1.0)
    z.index_add_(0, torch.tensor([0, 0]), y[:2])
    return z * y


def without_gradient(_: Model, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        z = y * 2
        z.add_(y)
        z[0] = x[0]
    return z * y


def detached_copy(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y.detach().clone()
    z.mul_(x)
    return z + y


def buffer_in_graph(model: Model, y: Tensor, x: Tensor) -> Tensor:
    model.count.add_(1)
    with torch.no_grad():
        model.table.mul_(0.9).add_(y.mean(0), alpha=0.1)
        model.table[0] = 7
    return y * model.count + model.table + x


def input_in_place(model: Model, _: Tensor, x: Tensor) -> Tensor:
    z = x.clamp_(min=0)
    return model.linear(z) + x


BODIES = [
    op_on_value,
    masked_fill,
    index_put,
    column,
    view_before,
    view_of_view,
    two_views,
    in_place_chain,
    relu,
    wider,
    broadcast_copy,
    diagonal,
    permuted,
    scatter,
    without_gradient,
    detached_copy,
    buffer_in_graph,
    input_in_place,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_values_and_gradients(body: Body) -> None:
    model, same = Model(body), Model(body)
    same.load_state_dict(model.state_dict())
    x = torch.randn(3, 4, dtype=torch.float64)
    program = capture(model, (x.clone(),))
    for _ in range(2):
        expected = same(x.clone())
        (got,) = run(program, {"x": x.clone()})
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        expected.pow(2).sum().backward()
        got.pow(2).sum().backward()
        x = x + 0.5
    for (name, one), (_, other) in zip(model.named_parameters(), same.named_parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12, msg=name)
    for (name, one), (_, other) in zip(model.named_buffers(), same.named_buffers()):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_nothing_is_changed_but_buffers_at_the_end(body: Body) -> None:
    program = capture(Model(body), (torch.randn(3, 4, dtype=torch.float64),))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    mutable = [
        node for node in calls if getattr(node.target, "_schema", None) and node.target._schema.is_mutable
    ]
    assert all("update" in node.meta and not node.users for node in mutable)
    assert mutable == (calls[-len(mutable) :] if mutable else [])


def through_detach(_: Model, y: Tensor, x: Tensor) -> Tensor:
    y.detach().mul_(x)
    return y


def hidden(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = y * 1
    with torch.no_grad():
        z.mul_(x)
    return z


def parameter(model: Model, y: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        model.linear.weight.mul_(2)
    return y


def attribute(model: Model, y: Tensor, _: Tensor) -> Tensor:
    model.plain.add_(1)
    return y + model.plain


def out_argument(_: Model, y: Tensor, x: Tensor) -> Tensor:
    z = torch.empty(3, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.mul(y.detach(), x, out=z)
    return z + y


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (through_detach, "carries a gradient is changed in place, hidden from autograd"),
        (hidden, "carries a gradient is changed in place, hidden from autograd"),
        (parameter, "parameter `linear.weight` is changed in place"),
        (attribute, "constant `plain` is changed in place"),
        (out_argument, "no out-of-place counterpart"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refusals_name_the_line(body: Body, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(Model(body), (torch.randn(3, 4, dtype=torch.float64),))
    assert "test_functional.py:" in str(caught.value)
