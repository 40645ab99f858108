"""The statements of one function: one for each node."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxpar.emit import describe
from fxpar.emit.callee import Callee
from fxpar.emit.calls import DEVICE, Calls
from fxpar.emit.literals import sequence
from fxpar.emit.names import Names, wishes
from fxpar.emit.sizes import LocalSizes
from fxpar.emit.text import STEP, WIDTH, Expression, Statement, flat

#: What a line has left for an expression that cannot be broken, and for the names before `=`.
ROOM = WIDTH - 2 * len(STEP)
TARGETS = 60


@dataclass(frozen=True)
class Context:
    """What the functions of one emitted module share."""

    root: str
    """What the model itself is called in comments."""
    usual: torch.dtype | None
    """The dtype that comments leave out."""
    imports: frozenset[Callee] = frozenset()
    """What is called by a name that has to be imported."""

    @property
    def reserved(self) -> list[str]:
        """The names that are imported, and that nothing else may have."""
        return [callee.name for callee in self.imports]


class Body:
    """Collects the statements of one function.

    `scope` has the text of each value that is there from the start, `names` is what the function's arguments left
    free, `fixed` the names that some values must have, and `layer` the path of the layer whose function it is.
    """

    def __init__(
        self,
        context: Context,
        scope: Mapping[fx.Node, str],
        names: Names,
        layer: str = "",
        fixed: Mapping[fx.Node, str] | None = None,
    ) -> None:
        self.context = context
        self.scope = dict(scope)
        self.names = names
        self.layer = layer
        self.fixed = dict(fixed or {})
        self.calls = Calls(lambda node: self.scope[node])
        self.calls.sizes = self.sizes = LocalSizes(self.scope, names)
        self.renames: list[Statement] = []
        """What gives arguments other names, where theirs are taken."""
        self.statements: list[Statement] = []
        self.module: str | None = None

    def extend(self, nodes: Sequence[fx.Node]) -> None:
        """Add the statements of a run of nodes."""
        wished = wishes(nodes, self.layer)
        for node in nodes:
            if node not in self.scope:
                self.add(node, wished)

    def add(self, node: fx.Node, wished: Mapping[fx.Node, str]) -> None:
        """Add the statement of one node; the results of one that is taken apart are named at once."""
        targets = self.unpacked(node, wished) or self.single(node, wished)
        expression = self.calls.write(node, ROOM - len(targets) - len("return "))
        note = describe.value(node, self.context.usual, self.sizes)
        self.statements.append(Statement(expression, targets, note=note, above=self.heading(node)))

    def single(self, node: fx.Node, wished: Mapping[fx.Node, str]) -> str:
        """Name the result of a node, if anything uses it."""
        if not node.users:
            return ""
        self.scope[node] = self.fixed.get(node) or self.names.give(wished[node])
        return self.scope[node]

    def unpacked(self, node: fx.Node, wished: Mapping[fx.Node, str]) -> str:
        """Name the parts of a result of which only the parts are used: `query, _, value`."""
        value = node.meta.get("val")
        parts: dict[Any, fx.Node] = {}
        for user in node.users:
            if user.target is not operator.getitem or user.args[1] in parts:
                return ""
            parts[user.args[1]] = user
        if not isinstance(value, list | tuple) or len(value) < 2 or not parts:
            return ""
        if not all(isinstance(part, int) and 0 <= part < len(value) for part in parts):
            return ""
        wish = wished[node]
        known = [self.fixed.get(parts[i], wish) if i in parts else "_" for i in range(len(value))]
        if len(", ".join(known)) + 3 * len(known) > TARGETS:
            return ""
        for position in sorted(parts):
            part = parts[position]
            self.scope[part] = self.fixed.get(part) or self.names.give(f"{wish}_{position}")
        return ", ".join(self.scope[parts[i]] if i in parts else "_" for i in range(len(value)))

    def heading(self, node: fx.Node) -> tuple[str, ...]:
        """Return the comment that names a node's module, if it is another one than the node's before."""
        path = node.meta.get("module", "")
        if path == self.module:
            return ()
        self.module = path
        return (describe.origin(node, self.context.root, self.layer),)

    def give_back(self, values: Sequence[Any], *, always_tuple: bool) -> None:
        """Add the return statement: of the one value itself, or of a tuple."""
        items = tuple(self.calls.value(value) for value in values)
        last = self.statements[-1] if self.statements else None
        if len(items) == 1 and not always_tuple:
            if last and last.targets == items[0]:
                self.statements[-1] = Statement(last.expression, "", "return ", last.note, last.above)
            else:
                self.statements.append(Statement(items[0], head="return "))
            return
        self.statements.append(Statement(_tuple(items), head="return "))

    def with_device(self, values: Sequence[fx.Node]) -> list[Statement]:
        """Return the statements, behind those that find what they use: sizes, and the device of new tensors.

        New tensors go where the function's arguments are, so that the module itself need not know its device.
        """
        sizes = [Statement(source, targets) for targets, source in self.sizes.assignments()]
        if not self.calls.uses_device:
            return [*sizes, *self.renames, *self.statements]
        tensors = [value for value in values if isinstance(value.meta.get("val"), torch.Tensor)]
        source = f"{self.scope[tensors[0]]}.device" if tensors else "next(self.parameters()).device"
        if self.renames:  # an argument may be called `device`
            return [*sizes, *self.renames, Statement(source, DEVICE), *self.statements]
        return [Statement(source, DEVICE), *sizes, *self.statements]


def _tuple(items: tuple[Expression, ...]) -> Expression:
    """Return a tuple without its brackets where it fits on the line of its `return`."""
    text = ", ".join(map(flat, items)) + ("," if len(items) == 1 else "")
    fits = items and len(text) + len("return ") <= ROOM
    return (f"({text})" if len(items) == 1 else text) if fits else sequence(items, is_tuple=True)
