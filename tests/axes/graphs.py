"""Small graphs made by hand, with the real value of every node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import fxpar
from fxpar import yamlfile
from fxpar.axes import oprule
from fxpar.axes.factor import Dim, Factor, resolve, text
from fxpar.axes.infer import Inference, infer
from fxpar.axes.sample import Sample, read
from fxpar.errors import RuleError

aten = torch.ops.aten
RULES = oprule.load([Path(fxpar.__file__).parents[1] / "rules"])


class Graph:
    """A graph that runs while it is built."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.mode = FakeTensorMode()
        self.values: dict[fx.Node, Any] = {}

    def input(self, value: Tensor, name: str = "x") -> fx.Node:
        """A placeholder with a real value."""
        return self._note(self.graph.placeholder(name), value)

    def numbers(self, *shape: int) -> fx.Node:
        """A placeholder whose elements are all different."""
        start = 1000 * len(self.values)
        return self.input(torch.arange(start, start + torch.Size(shape).numel()).reshape(shape))

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call, with its value."""
        real = fx.node.map_arg((args, kwargs), lambda node: self.values[node])
        return self._note(self.graph.call_function(target, args, kwargs), target(*real[0], **real[1]))

    def infer(self) -> Inference:
        """The dims of all nodes, by the rules that are shipped."""
        return infer(self.graph, RULES)

    def _note(self, node: fx.Node, value: Any) -> fx.Node:
        self.values[node] = value
        node.meta = {"val": pytree.tree_map_only(Tensor, self.mode.from_tensor, value), "kind": "input"}
        return node


class Letters:
    """Names for factors in the order in which they are met: a, b, c, ..., in capitals where locked."""

    def __init__(self) -> None:
        self.names: dict[Factor, str] = {}

    def __call__(self, factor: Factor) -> str:
        name = self.names.setdefault(factor, chr(ord("a") + len(self.names)))
        return name.upper() if factor.locked else name

    def of(self, *dims: Dim) -> str:
        """Dims in factor notation."""
        return " ".join(text(resolve(dim), self) for dim in dims)


def sample(op: str, text: str) -> Sample:
    """The sample call that a text describes."""
    (entry,) = yamlfile.parse(f'- "{text}"', "x.yaml", RuleError).list()
    found = read(entry, op)
    assert found is not None
    return found


def roles(op: str, text: str) -> str:
    """The roles of each dim of a call, `d0 !1, i -> d0 i`; a dim without roles is `1`, and `!` needs it whole."""
    call = sample(op, text)
    links = infer(call.graph, RULES).links[call.call]
    shown = {name: f"{name}+" if role.meaning == "sum" else name for name, role in links.roles.items()}
    shown |= {n: f"!{n.strip('!')}" for n, role in links.roles.items() if role.meaning == "whole"}
    sides = [
        ", ".join(
            " ".join("*".join(shown[name] for name, _ in pieces) or "1" for pieces in tensor)
            for tensor in side
        )
        for side in (links.ins, links.outs)
    ]
    return " -> ".join(sides)
