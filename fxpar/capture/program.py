"""A captured model: one flat graph, its tensors by their original names, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxpar.capture.leaves import Leaves
from fxpar.capture.tree import flatten, same
from fxpar.condition import Condition
from fxpar.errors import ModelError


@dataclass(frozen=True)
class Input:
    """One leaf of the model's inputs.

    `name` is the argument of `forward`, with `.key` or `.0` appended for leaves of nested arguments.
    `placeholder` is the node's name, None for a leaf that was baked into the graph, whose value is then `value`
    (None, a bool, a number, a string); a later call has to give the same one, or may leave it out if it is the default
    of `forward`.
    """

    name: str
    placeholder: str | None
    value: Any = None
    default: bool = False


@dataclass(frozen=True)
class DynamicAxis:
    """An axis of the inputs whose size may differ from call to call.

    `places` are its dims, as (name of the input, dim); `size` is that of the example, `least` and `most` (None: no
    limit) what the model allows, and `reason` says where `most` comes from.
    """

    name: str
    places: tuple[tuple[str, int], ...]
    size: int
    least: int
    most: int | None = None
    reason: str = ""


@dataclass
class Program:
    """A model as a flat graph of pre-dispatch ATen ops.

    The graph has placeholders (first parameters, then buffers, constants, inputs), call_function nodes and one output
    node, whose only argument is the flat tuple of outputs. Each node's `meta` holds

    - `val`: a fake tensor, or a tuple of them, with the global shape and dtype,
    - `kind` (placeholders): `parameter`, `buffer`, `constant` or `input`,
    - `name` (placeholders): the original name (`model.layers.0.mlp.up_proj.weight`, `input_ids`),
    - `module`: the path of the module that made it, empty for the root; for a tensor the module that holds it,
    - `call` (ops): 0 in the first call of that module, 1 in the second, ...,
    - `source`: `file.py:123`, the line of the model that made it, empty where unknown,
    - `grad`: whether a gradient flows through it: it depends on a parameter by differentiable floating-point ops,
    - `creates` (ops, optional): it makes a tensor from no tensor, and has to be told the device,
    - `update` (ops, optional): it is the final `copy_` into the buffer of that name, and nothing uses its result,
    - `rest` (slices, optional): it is what an in-place op left of a dim as it was,
    - `mask` (attention, optional): `full` or `causal`, what its constant mask amounts to.

    A call of a `torch.autograd.Function` has a `FunctionCall` as its target, one of an opaque module `leaves`.
    Outputs that are no tensors (None, numbers) stand in the output tuple as they are.
    """

    graph: fx.Graph
    tensors: dict[str, torch.Tensor]
    """Parameters, buffers and constants by name: real, or on the meta device where weights come from a file."""
    inputs: tuple[Input, ...]
    out_spec: pytree.TreeSpec
    output_names: tuple[str, ...]
    """One name per flat output: a dict key, a field of a dataclass, or the position."""
    ties: dict[str, str] = field(default_factory=dict)
    """Every further name of a shared tensor -> the name it has in `tensors`."""
    modules: dict[str, str] = field(default_factory=dict)
    """The class name of every module, by path."""
    persistent: frozenset[str] = frozenset()
    """The names (parameters and persistent buffers) that belong into a checkpoint, without ties."""
    training: bool = True
    leaves: Leaves = field(default_factory=Leaves)
    """The opaque modules, which nodes with this target call."""
    positional: tuple[str, ...] = ()
    """The names of the arguments of `forward` by position, as of `fxpar.capture.arguments.positional`."""
    omitted: Mapping[str, str] = field(default_factory=dict)
    """Outputs that are objects of which nothing is known, by name, with their class; None stands for them."""
    dynamic: tuple[DynamicAxis, ...] = ()
    """The axes whose sizes may differ from call to call."""
    conditions: tuple[Condition, ...] = ()
    """What else has to hold of these sizes: what the model's code compared came out so in the example."""
    others: tuple[Program, ...] = ()
    """The same model captured at other sizes of these axes."""
    unbounded: frozenset[str] = frozenset()
    """Tables of which it is not known how many rows are looked up at still other sizes."""

    def placeholder(self, name: str) -> fx.Node:
        """The placeholder of a parameter, buffer, constant or input, by its original name."""
        name = self.ties.get(name, name)
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.meta["name"] == name:
                found: fx.Node = node
                return found
        raise KeyError(name)

    def flat_inputs(self, arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call by placeholder name, from the arguments of `forward` by name.

        Raises ModelError where one is missing, unknown, of another size or dtype, or differs from what is baked in.
        """
        given = dict(leaf for name, value in arguments.items() for leaf in flatten(name, value))
        unknown = sorted(given.keys() - {entry.name for entry in self.inputs})
        errors = [f"`{name}` is not an input of the captured graph" for name in unknown]
        vals = {node.name: node.meta["val"] for node in self.graph.nodes if node.op == "placeholder"}
        flat = {}
        for entry in self.inputs:
            value = given.get(entry.name)
            errors += _misfits(entry, value, vals)
            if entry.placeholder is not None and isinstance(value, torch.Tensor):
                flat[entry.placeholder] = value
        if errors:
            raise ModelError("the inputs do not fit the captured graph", details=errors)
        return flat


def sizes_of(program: Program, axes: Sequence[DynamicAxis]) -> dict[str, int]:
    """The size that each of some axes has in the inputs that a program was captured with."""
    found = {}
    for axis in axes:
        (name, dim), *_ = axis.places
        found[axis.name] = int(program.placeholder(name).meta["val"].shape[dim])
    return found


def _misfits(entry: Input, value: Any, vals: Mapping[str, torch.Tensor]) -> list[str]:
    if entry.placeholder is None:
        return (
            []
            if same(value, entry.value)
            else [f"`{entry.name}` was {entry.value!r} at capture and is {_kind(value)} now"]
        )
    wanted = vals[entry.placeholder]
    if isinstance(value, torch.Tensor) and value.shape == wanted.shape and value.dtype == wanted.dtype:
        return []
    return [f"`{entry.name}` was {_kind(wanted)} at capture and is {_kind(value)} now"]


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
