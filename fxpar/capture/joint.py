"""What a `torch.autograd.Function` computes, forward and backward, as one graph of ATen ops.

    in_0, in_1, gradient_0  ->  out_0, gradients of in_0 and in_1

The Function's own `forward` and `backward` are traced on fakes; nothing of it takes the Function's place. It is for
looking at: which dims of what goes in and out are untouched, and whether slices are computed like the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxpar.capture.clean import clean, replace
from fxpar.capture.functional import functional
from fxpar.capture.functions import FunctionCall
from fxpar.capture.node import aten, is_op, tensors_of

#: The sizes of one tensor.
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Joint:
    """The graph of one call, with the nodes of what goes in and out; None where a tensor has no gradient."""

    graph: fx.Graph
    ins: tuple[fx.Node, ...]
    out_gradients: tuple[fx.Node | None, ...]
    outs: tuple[fx.Node | None, ...]
    """One for each output, None where it is no tensor."""
    in_gradients: tuple[fx.Node | None, ...]


class Tracer:
    """Traces calls of Functions; equal calls are traced once."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Joint | None] = {}

    def trace(self, node: fx.Node, shapes: Sequence[Shape] | None = None) -> Joint | None:
        """The joint graph of a node that calls a Function, on tensors of other `shapes` where they are given.

        None where it cannot be traced, or draws random numbers, or holds a tensor of its own.
        """
        operands: list[fx.Node] = []
        fx.map_arg((node.args, node.kwargs), operands.append)
        sizes = [tuple(operand.meta["val"].shape) for operand in operands] if shapes is None else [*shapes]
        kinds = [(operand.meta["val"].dtype, bool(operand.meta.get("grad"))) for operand in operands]
        literals = str(fx.map_arg((node.args, node.kwargs), lambda _: None))
        key = (node.target, literals, tuple(sizes), tuple(kinds))
        if key not in self._found:
            self._found[key] = _traced(node, operands, sizes)
        return self._found[key]


def _traced(node: fx.Node, operands: Sequence[fx.Node], shapes: Sequence[Shape]) -> Joint | None:
    values = [operand.meta["val"].new_empty(shape) for operand, shape in zip(operands, shapes)]
    call = _Call(node, [bool(operand.meta.get("grad")) for operand in operands])
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            gradients = [torch.empty_like(out) for out in call.forward(values)[1] if out.requires_grad]
            graphs = (_graph(call, [*values, *gradients], early) for early in (True, False))
            graph = next((found for found in graphs if not _holds_tensors(found)), None)
        if graph is None or any(_is_random(n) for n in graph.nodes):
            return None
        return _joint(call, graph, len(values))
    except Exception:  # whatever a Function does that tracing cannot follow
        return None


def _graph(call: _Call, values: Sequence[torch.Tensor], early: bool) -> fx.Graph:
    """The ops as they are called; those below composite ones if not `early`, which follows saved outputs as well."""
    made = make_fx(call.run, tracing_mode="fake", pre_dispatch=early, _allow_non_fake_inputs=True)
    graph: fx.Graph = made(*values).graph
    return graph


def _holds_tensors(graph: fx.Graph) -> bool:
    """Whether a tensor is in the graph that does not come from what goes in, as far as tracing saw."""
    return any(node.op == "get_attr" for node in graph.nodes)


@dataclass
class _Call:
    """One call of a Function as a plain function of tensors: outputs and gradients of what goes in."""

    node: fx.Node
    grads: Sequence[bool]
    outputs: Sequence[Any] = ()
    """The outputs of the latest run."""
    flows: Sequence[bool] = ()
    """Which of the tensors among them have a gradient."""
    reached: Sequence[bool] = ()
    """Which tensors that go in got a gradient."""

    def forward(self, values: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What goes in, as leaves, and the tensors that come out."""
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_(grad) for value, grad in zip(values, self.grads)]
            remaining = iter(leaves)
            args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), lambda _: next(remaining))
            assert isinstance(self.node.target, FunctionCall)
            result = self.node.target(*args, **kwargs)
        self.outputs = result if isinstance(result, tuple) else (result,)
        tensors = [out for out in self.outputs if isinstance(out, torch.Tensor)]
        self.flows = [out.requires_grad for out in tensors]
        return leaves, tensors

    def run(self, *flat: torch.Tensor) -> list[torch.Tensor]:
        """The tensors that come out, then the gradients that there are."""
        values, gradients = flat[: len(self.grads)], flat[len(self.grads) :]
        leaves, tensors = self.forward(values)
        ends = [out for out in tensors if out.requires_grad]
        starts = [leaf for leaf in leaves if leaf.requires_grad]
        found = torch.autograd.grad(ends, starts, gradients, allow_unused=True) if ends and starts else ()
        by_leaf = dict(zip(map(id, starts), found))
        self.reached = [by_leaf.get(id(leaf)) is not None for leaf in leaves]
        return [*tensors, *(gradient for gradient in found if gradient is not None)]


def _joint(call: _Call, graph: fx.Graph, count: int) -> Joint:
    for node in list(graph.nodes):
        if is_op(node, aten.detach):
            replace(node, node.args[0])
    graph = functional(graph)
    clean(graph)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    given = iter(placeholders[count:])
    flat: Any = graph.output_node().args[0]
    results = iter(flat)
    outs = tuple(next(results) if isinstance(out, torch.Tensor) else None for out in call.outputs)
    flows = iter(call.flows)
    return Joint(
        graph,
        tuple(placeholders[:count]),
        tuple(next(given) if out is not None and next(flows) else None for out in outs),
        outs,
        tuple(next(results) if reached else None for reached in call.reached),
    )


def _is_random(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return random and bool(tensors_of(node.meta.get("val")))
