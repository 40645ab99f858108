"""Functions with gradients of their own that read sizes, sum, slice and branch, inside one small model."""

from __future__ import annotations

from typing import Any

import torch
from shard_modules import FFN, HEADS, LENGTH, VOCAB, WIDTH, labels, tokens
from torch import Tensor, nn
from torch.nn import functional as F


class Gelu(torch.autograd.Function):
    """Pointwise, with an approximate gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.sigmoid(1.7 * x)


class Norm(torch.autograd.Function):
    """Over the last dim, with a weight whose gradient is a sum over all others, and a number that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return x * scale * weight

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        gw = (g * x * scale).reshape(-1, x.shape[-1]).sum(0)
        inner = (g * weight * x).sum(-1, keepdim=True) * scale.pow(3) / x.shape[-1]
        return g * weight * scale - x * inner * (1 + ctx.eps), gw, None


class Gate(torch.autograd.Function):
    """Two outputs of a fused operand; what has no gradient stands between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: int) -> tuple[Tensor, None, Tensor]:
        gate, up = x.chunk(2, -1)
        ctx.save_for_backward(gate, up)
        ctx.power = power
        return F.silu(gate) * up, None, gate**power

    @staticmethod
    def backward(ctx: Any, one: Tensor, _: None, two: Tensor) -> tuple[Tensor, None]:
        gate, up = ctx.saved_tensors
        slope = torch.sigmoid(gate)
        return torch.cat([one * up * slope + two * ctx.power, one * F.silu(gate)], -1), None


class Product(torch.autograd.Function):
    """A linear layer: its weight's gradient is a sum over the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight) + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, given = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        return g @ weight, rows.t() @ given, rows.sum(0)


class Scan(torch.autograd.Function):
    """A recurrence over the sequence, each channel alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in range(x.shape[1]):
            state = state * decay + x[:, step]
            states.append(state)
        found = torch.stack(states, 1)
        ctx.save_for_backward(found, decay)
        return found

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        states, decay = ctx.saved_tensors
        carried, total, gradients = torch.zeros_like(g[:, 0]), torch.zeros_like(decay), []
        for step in reversed(range(g.shape[1])):
            carried = carried * decay + g[:, step]
            gradients.insert(0, carried)
            if step:
                total = total + (carried * states[:, step - 1]).sum(0)
        return torch.stack(gradients, 1), total


class Heads(torch.autograd.Function):
    """Over groups of the last dim, whose number it reads from an argument: right for no slice of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int) -> Tensor:
        ctx.heads = heads
        return x.view(x.shape[0], x.shape[1], heads, -1).softmax(-1).view(x.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return (g.unflatten(-1, (ctx.heads, -1)).cumsum(-1)).flatten(-2), None


class BySize(torch.autograd.Function):
    """Divides by sizes that are no dims of any op."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.numel()
        return x / x.shape[-1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / ctx.size * 100


class ByBranch(torch.autograd.Function):
    """Does one thing on large tensors and another on small ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.large = x.shape[-1] > 40
        return x * 2 if x.shape[1] > 5 else x * 3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2 if ctx.large else g * 5


class ByPosition(torch.autograd.Function):
    """Takes as many rows of a table as there are, and numbers them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        ctx.length = x.shape[1]
        steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return x + table[: x.shape[1]] + steps[:, None]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        (table,) = ctx.saved_tensors
        rows = g.sum(0)
        return g, torch.cat([rows, torch.zeros_like(table[ctx.length :])])


class InPlace(torch.autograd.Function):
    """Adds up the gradient of a weight in a tensor that it makes first, through a view of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        made = torch.zeros_like(x)
        made.add_(x).mul_(weight)
        return made

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        total = torch.zeros_like(weight)
        total.view(1, -1).add_((g * x).sum((0, 1))[None])
        return g * weight, total


class Literal(torch.autograd.Function):
    """Has the sizes of the example in its text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.reshape(4, LENGTH, FFN) * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # noqa: ARG004
        return g * 3


class Untraced(torch.autograd.Function):
    """Looks at values, which no trace can follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # noqa: ARG004
        return g * 3 if g.sum().item() > 1e9 else g * 4


class Total(torch.autograd.Function):
    """A loss: the sum over all tokens, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.pow(2).exp().sum() / 9

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.exp()


class Layer(nn.Module):
    """Up, a Function, down."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.up = nn.Linear(WIDTH, 2 * FFN if name == "gate" else FFN)
        self.down = nn.Linear(FFN, WIDTH)
        self.weight = nn.Parameter(torch.rand(FFN))
        self.table = nn.Parameter(torch.rand(2 * LENGTH, FFN))
        self.square = nn.Parameter(torch.rand(FFN, FFN) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.middle(self.up(x)))

    def middle(self, x: Tensor) -> Tensor:
        if self.name == "gate":
            made, _, side = Gate.apply(x, 2)
            return made + side.tanh()
        given: dict[str, tuple[Any, ...]] = {
            "norm": (Norm, x, self.weight, 1e-5),
            "product": (Product, x, self.square, self.weight),
            "scan": (Scan, x, self.weight),
            "in place": (InPlace, x, self.weight),
            "heads": (Heads, x, HEADS),
            "position": (ByPosition, x, self.table),
        }
        function, *rest = given.get(self.name) or (PLAIN[self.name], x)
        return function.apply(*rest)


PLAIN: dict[str, Any] = {
    "gelu": Gelu,
    "size": BySize,
    "branch": ByBranch,
    "literal": Literal,
    "untraced": Untraced,
    "total": Gelu,
    "logits": Gelu,
}
#: The name of a model -> the axes that its Function may be split on.
FUNCTIONS: dict[str, set[str]] = {
    "gelu": {"batch", "sequence", "ffn"},
    "norm": {"batch", "sequence"},
    "gate": {"batch", "sequence", "ffn"},
    "product": {"batch", "sequence"},
    "scan": {"batch", "ffn"},
    "in place": {"batch", "sequence", "ffn"},
    "heads": {"batch", "sequence"},
    "size": set(),
    "branch": {"batch"},
    "position": {"batch", "ffn"},
    "literal": set(),
    "untraced": set(),
    "total": {"batch", "sequence", "ffn"},
    "logits": {"batch", "sequence", "ffn"},
}


class Model(nn.Module):
    """Two layers between an embedding and a loss."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList([Layer(name) for _ in range(2)])
        self.mix = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, idx: Tensor, targets: Tensor) -> dict[str, Tensor]:
        x = self.tokens(idx)
        x = x + self.mix(x, x, x, need_weights=False)[0]
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        if self.name == "logits":
            logits = Gelu.apply(logits)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if self.name == "total":
            loss = loss + Total.apply(x)
        return {"loss": loss, "hidden": x}


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with the Function of that name, and its inputs."""
    torch.manual_seed(0)
    return Model(name).double(), {"idx": tokens(), "targets": labels()}
