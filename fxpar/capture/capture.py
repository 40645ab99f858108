"""Capture: from an `nn.Module` and example inputs to a `Program`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxpar.capture.arguments import is_default, positional
from fxpar.capture.clean import clean, drop_dead
from fxpar.capture.export import ROOT, Traced, trace
from fxpar.capture.failure import failure
from fxpar.capture.flat import flat_graph
from fxpar.capture.functional import functional
from fxpar.capture.gradient import mark_gradients
from fxpar.capture.indexes import slice_constant_indexes
from fxpar.capture.masks import mark_masks
from fxpar.capture.program import Input, Program
from fxpar.capture.unsorted import unsort
from fxpar.clock import Clock
from fxpar.collector import paused
from fxpar.errors import CaptureError

_KINDS = ("parameter", "buffer", "constant", "input")
_DOCUMENTED = ("val", "kind", "name", "module", "call", "source", "grad", "creates", "update", "rest")


def capture(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    clock: Clock | None = None,
    opaque: Sequence[str] = (),
) -> Program:
    """Capture a model as one flat graph of pre-dispatch ATen ops, in its present mode (train or eval) and dtype.

    `args` and `kwargs` are example inputs: nested lists and dicts of tensors, numbers and strings. Only sizes and
    dtypes of tensors are read, so that parameters and inputs may lie on the meta device, and nothing is allocated.
    The model is left as it was. Gradients of the graph are those of the model: regions without gradients, own
    gradients of `torch.autograd.Function` and in-place ops are kept exactly. `clock` takes the time of `export`.

    `opaque` are paths of submodules, or patterns of them (`blocks.*.experts`), that stay one node each, since no graph
    can follow what they do. Such a module is run on drawn numbers, of the sizes of the example, to see what it gives.

    Raises CaptureError, naming the line, for what one graph cannot hold.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise CaptureError(
            "capture runs under autocast", details=["call it outside, with the model in the dtype of the run"]
        )
    try:
        traced = trace(model, args, kwargs or {}, clock or Clock(), opaque)
        ties = tied_names(model)
        with paused():
            graph = _graph(traced, ties, model)
    except CaptureError:
        raise
    except Exception as error:
        raise _known(error) or failure(model, error) from error
    program = _program(model, traced, graph, ties)
    slice_constant_indexes(program)
    mark_masks(program)
    return program


def tied_names(model: nn.Module) -> dict[str, str]:
    """Every further name of a tensor that has several -> its first name."""
    first: dict[int, str] = {}
    ties = {}
    for name, tensor in _named_tensors(model):
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
        first.setdefault(id(tensor), name)
    return ties


def _named_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _known(error: BaseException) -> CaptureError | None:
    """The CaptureError that torch wrapped on its way out, if there is one."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, CaptureError):
        link = link.__cause__ or link.__context__
    return link


def _graph(traced: Traced, ties: Mapping[str, str], model: nn.Module) -> fx.Graph:
    graph = functional(flat_graph(traced, ties))
    clean(graph)
    unsort(graph)
    trainable = frozenset(name for name, tensor in model.named_parameters() if tensor.requires_grad)
    mark_gradients(graph, trainable)
    drop_dead(graph)
    return _renamed(graph)


def _renamed(graph: fx.Graph) -> fx.Graph:
    """A copy with dense, readable names, placeholders in order of their kind, and the documented `meta` only."""
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    order = sorted(placeholders, key=lambda node: _KINDS.index(node.meta["kind"]))
    for node in [*order, *(node for node in graph.nodes if node.op != "placeholder")]:
        if node.op == "output":
            new.output(fx.map_arg(node.args[0], values.__getitem__))
            break
        made = new.create_node(
            node.op,
            node.target if node.op != "placeholder" else node.meta["name"].replace(".", "_"),
            fx.map_arg(node.args, values.__getitem__),
            fx.map_arg(node.kwargs, values.__getitem__),
            name=_base_name(node),
        )
        made.target = made.name if node.op == "placeholder" else made.target
        made.meta = {key: node.meta[key] for key in _DOCUMENTED if key in node.meta}
        values[node] = made
    return new


def _base_name(node: fx.Node) -> str:
    if node.op == "placeholder":
        return str(node.meta["name"]).replace(".", "_")
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", "op")).strip("_") or "op"


def _program(model: nn.Module, traced: Traced, graph: fx.Graph, ties: Mapping[str, str]) -> Program:
    constants = {name.removeprefix(f"{ROOT}."): value for name, value in traced.exported.constants.items()}
    tensors = {name: tensor for name, tensor in _named_tensors(model) if name not in ties}
    held = {node.meta["name"]: node for node in graph.nodes if node.op == "placeholder"}
    for name, node in held.items():
        if node.meta["kind"] == "constant":
            tensors[name] = _real(constants[name])
    flat = iter([node for node in graph.nodes if node.meta.get("kind") == "input"])
    inputs = tuple(
        Input(name, next(flat).name)
        if isinstance(value, torch.Tensor)
        else Input(name, None, value, is_default(model, name, value))
        for name, value in traced.inputs
    )
    return Program(
        graph=graph,
        tensors=tensors,
        inputs=inputs,
        out_spec=traced.out_spec,
        output_names=traced.output_names,
        ties=dict(ties),
        modules={path: type(module).__name__ for path, module in model.named_modules(remove_duplicate=False)},
        persistent=frozenset(model.state_dict(keep_vars=True)) - set(ties),
        training=model.training,
        leaves=traced.leaf_calls.leaves,
        positional=positional(model),
        omitted=traced.omitted,
    )


def _real(constant: torch.Tensor) -> torch.Tensor:
    """A constant without its fake: what was built on meta has no value."""
    if isinstance(constant, torch._subclasses.FakeTensor):
        return torch.empty_like(constant, device="meta")
    return constant.detach()
