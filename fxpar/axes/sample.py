"""Sample calls of ops, written in the `proof:` of a rule.

f[4,6,8], f[10,8], f[10]              the arguments of the rule's op, tensors by kind and shape
aten.view.default(f[4,6], [2,2,6])    for this op only, where a rule names several
f[4,6], [2,12], dim=1, mode='sum'     numbers, lists, texts, true, false, null, torch.float64, also by name

f[...]   normal numbers (float64), differentiable     i[...]<10   integers from 0 to 9
u[...]   the same between 0 and 1                      p[2,3]<5    integers from 0 to 4, none twice in a row
c[...]   complex numbers, differentiable               b[...]      booleans
n[...]   numbers as in u, not differentiable           f[()]       a tensor without dims
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxpar import yamlfile
from fxpar.errors import FxparError

WORDS = {"true": True, "false": False, "null": None}

#: Kind of tensor -> makes one of a shape; integers stay below a limit.
KINDS: dict[str, Callable[[list[int], int], Tensor]] = {
    "f": lambda shape, _: torch.randn(shape, dtype=torch.float64),
    "u": lambda shape, _: torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05,
    "n": lambda shape, _: torch.rand(shape, dtype=torch.float64) * 0.9 + 0.05,
    "c": lambda shape, _: torch.randn(shape, dtype=torch.complex128),
    "b": lambda shape, _: torch.rand(shape) < 0.5,
    "i": lambda shape, limit: torch.randint(0, limit, shape),
    "p": lambda shape, limit: torch.rand(*shape[:-1], limit).argsort(-1)[..., : shape[-1]],
}
#: Kinds that are differentiated.
DIFFERENTIABLE = "fuc"


@dataclass
class Sample:
    """One call of one op: a graph with a placeholder for each tensor, and real tensors for them."""

    text: str
    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[fx.Node, Tensor] = field(default_factory=dict)
    """What stands for each placeholder; those that are to be differentiated say `requires_grad`."""

    @property
    def call(self) -> fx.Node:
        """The call of the op."""
        (call,) = self.graph.output_node().all_input_nodes
        return call


def overload(op: str) -> torch._ops.OpOverload | None:
    """The op of that name (`aten.linear.default`); None if this torch has none."""
    found: Any = torch.ops
    for part in op.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def read(entry: yamlfile.Node, op: str) -> Sample | None:
    """The sample of `op` that an entry of `proof:` describes, or None if it is one of another op.

    The tensors are drawn from a fixed seed. Raises the file's error, at the place in the text, where it cannot be read
    and where torch has no such op or refuses the call.
    """
    target = overload(op)
    if target is None:
        raise entry.wrong(f"torch has no op `{op}`")
    call = _parse(entry)
    if len(call.args) == 1 and isinstance(call.args[0], ast.Call):
        call = call.args[0]
        if ast.unparse(call.func) != op:
            return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Builder(entry, Sample(entry.text())).build(target, call)


_PREFIX = "call("


def _parse(entry: yamlfile.Node) -> ast.Call:
    try:
        call = ast.parse(f"{_PREFIX}{entry.text()})", mode="eval").body
    except SyntaxError as error:
        raise _wrong(entry, (error.offset or 1) - 1, f"cannot be read: {error.msg}") from None
    if not isinstance(call, ast.Call) or any(word.arg is None for word in call.keywords):
        raise entry.wrong("cannot be read: not the arguments of a call")
    return call


def _wrong(entry: yamlfile.Node, offset: int, what: str) -> FxparError:
    """The error at an offset of the parsed text, which has a prefix."""
    return entry.error(what, place=entry.place_at(max(0, offset - len(_PREFIX))))


@dataclass
class _Builder:
    """Makes the graph of one parsed call."""

    entry: yamlfile.Node
    sample: Sample
    mode: FakeTensorMode = field(default_factory=FakeTensorMode)

    def build(self, target: torch._ops.OpOverload, call: ast.Call) -> Sample:
        """The sample with the call in its graph."""
        args = tuple(self.value(argument) for argument in call.args)
        kwargs = {str(word.arg): self.value(word.value) for word in call.keywords}
        node = self.sample.graph.call_function(target, args, kwargs)
        real = fx.node.map_arg((args, kwargs), lambda placeholder: self.sample.tensors[placeholder])
        try:
            with torch.no_grad():
                out = target(*real[0], **real[1])
            node.meta["val"] = pytree.tree_map_only(Tensor, self.mode.from_tensor, out)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            details = str(error).splitlines()[:1]
            raise self.entry.error(
                f"torch refuses this call of `{target}`", place=self.entry.place, details=details
            ) from error
        self.sample.graph.output(node)
        return self.sample

    def value(self, tree: ast.expr) -> Any:
        """A number, text, list or word as it is; a tensor as its placeholder."""
        match tree:
            case ast.List(elts=elements):
                return [self.value(element) for element in elements]
            case ast.Compare(
                left=ast.Subscript() as left, ops=[ast.Lt()], comparators=[ast.Constant(int(limit))]
            ):
                return self.tensor(left, limit)
            case ast.Subscript():
                return self.tensor(tree, 2)
            case ast.Name(id=word) if word in WORDS:
                return WORDS[word]
            case ast.Attribute(value=ast.Name(id="torch"), attr=name) if hasattr(torch, name):
                return getattr(torch, name)
        try:
            return ast.literal_eval(tree)
        except ValueError:
            raise self.unreadable(tree) from None

    def tensor(self, tree: ast.Subscript, limit: int) -> fx.Node:
        """The placeholder of a tensor such as `f[4,6]`."""
        kind = ast.unparse(tree.value)
        sizes = tree.slice.elts if isinstance(tree.slice, ast.Tuple) else [tree.slice]
        if kind not in KINDS or not all(isinstance(s, ast.Constant) and type(s.value) is int for s in sizes):
            raise self.unreadable(tree)
        real = KINDS[kind]([size.value for size in sizes if isinstance(size, ast.Constant)], limit)  # type: ignore[misc]
        real.requires_grad_(kind in DIFFERENTIABLE)
        node = self.sample.graph.placeholder(f"x{len(self.sample.tensors)}")
        node.meta["kind"] = "parameter" if self.sample.tensors and kind in DIFFERENTIABLE else "input"
        node.meta["val"] = self.mode.from_tensor(real)
        self.sample.tensors[node] = real
        return node

    def unreadable(self, tree: ast.expr) -> FxparError:
        """The error for a part of the text that means nothing."""
        kinds = ", ".join(f"{kind}[...]" for kind in KINDS)
        error = _wrong(self.entry, tree.col_offset, f"cannot read `{ast.unparse(tree)}`")
        return type(error)(error.what, place=error.place, details=[f"tensors are {kinds}"])
