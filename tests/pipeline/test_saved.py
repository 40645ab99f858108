"""What autograd keeps between forward and backward, against what torch says that it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pipeline_models import batch, case
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.pipeline.backward import run_costs
from fxpar.pipeline.cut import choose
from fxpar.pipeline.module import StageModule
from fxpar.pipeline.stages import build

#: How much of what torch saves may be left out or counted too much: counters and other numbers of a few bytes.
OF_THE_GRAPH = 1e-3
#: The model itself runs attention without a repeated key where its graph has one.
OF_THE_MODEL = 0.1


def saved_bytes(run: Callable[[], Any], held: Iterable[Tensor]) -> int:
    """The bytes of all memory that autograd saves in a run, but for that of `held`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    memory: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = run()
    assert outputs
    return sum(tensor.untyped_storage().nbytes() for at, tensor in memory.items() if at not in known)


@pytest.mark.parametrize("name", ["gpt", "frozen", "llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("count", [1, 3])
def test_stages_of_models(name: str, count: int) -> None:
    subject = case(name)
    stages = subject.stages(count)
    held = list(subject.program.tensors.values())
    inputs = subject.flat(batch(0))
    sent: tuple[Any, ...] = ()
    for stage, module in zip(stages, subject.modules(stages)):
        received = [t.detach().requires_grad_(v.requires_grad) for t, v in zip(sent, stage.received)]
        given = {key: inputs[key] for key in stage.inputs}
        own = [*held, *module.parameters(), *module.buffers()]
        measured = saved_bytes(lambda m=module, r=received, g=given: m(*r, **g), own)
        assert stage.spec().costs.kept_bytes == pytest.approx(measured, rel=OF_THE_GRAPH)
        sent = module(*received, **given)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_whole_models(name: str) -> None:
    subject = case(name)
    (stage,) = subject.stages(1)
    held = [*subject.model.parameters(), *subject.model.buffers()]
    measured = saved_bytes(lambda: subject.model(**batch(0)), held)
    assert stage.costs.kept_bytes == pytest.approx(measured, rel=OF_THE_MODEL)


OPS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "matmul of heads": (lambda a, b: a.transpose(1, 2) @ b.transpose(1, 2).mT, [(2, 3, 4, 5), (2, 3, 4, 5)]),
    "matmul with a broadcast batch": (torch.matmul, [(2, 3, 4, 5), (3, 5, 6)]),
    "matmul of a matrix": (torch.matmul, [(2, 3, 4), (4, 5)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "division": (torch.div, [(8, 8), (8, 8)]),
    "power": (lambda a: a**2, [(8, 8)]),
    "softmax": (lambda a: torch.softmax(a * a, -1), [(8, 8)]),
    "normalised": (lambda a: a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1), [(8, 8)]),
    "rms_norm": (lambda a: F.rms_norm(a, (8,)), [(8, 8)]),
    "reshaped": (lambda a: torch.exp(a.T.reshape(4, 16)).cos(), [(8, 8)]),
    "chunks": (lambda a: F.silu(a.chunk(2, -1)[0]) * a.chunk(2, -1)[1], [(8, 8)]),
    "masked": (lambda a: a.masked_fill(a > 0, 1.0).sin(), [(8, 8)]),
    "gathered": (lambda a: a[torch.tensor([0, 3, 3])].exp(), [(8, 8)]),
    "dropped": (lambda a: F.dropout(a, 0.5, True), [(8, 8)]),
    "convolution": (F.conv1d, [(2, 4, 9), (6, 4, 3)]),
    "causal attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8)],
    ),
    "attention with a learned mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8), (2, 3, 5, 7)],
    ),
}


class Apply(nn.Module):
    """A function of tensors, each the product of an input and a parameter."""

    def __init__(self, function: Callable[..., Tensor], count: int) -> None:
        super().__init__()
        self.function = function
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(count))

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*(tensor * scale for tensor, scale in zip(tensors, self.scales)))


@pytest.mark.parametrize("name", OPS)
def test_ops(name: str) -> None:
    function, shapes = OPS[name]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    model = Apply(function, len(shapes)).double()
    program = capture(model, tensors)
    (stage,) = build(choose(program.graph, 1))
    module = StageModule(stage, dict(program.tensors))
    inputs = dict(zip(stage.inputs, tensors))
    measured = saved_bytes(lambda: module(**inputs), program.tensors.values())
    assert run_costs(stage.graph).kept_bytes == measured
