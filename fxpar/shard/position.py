"""Where in the new graph a conversion stands, and to which module of the model it is counted.

It belongs to the unit (the repeated layer) of its consumers if they all are in one, which is not the producer's;
else to the producer. So that layers of one shape stay alike, whatever is before and after them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from fxpar.axes.infer import Inference

#: The placeholders of the seed of one forward call, and of that of a step of several microbatches.
SEED, STEP_SEED = "seed", "step_seed"


class Positions:
    """Finds the place of each conversion while the new graph is being built."""

    def __init__(self, graph: fx.Graph, found: Inference) -> None:
        self.graph = graph
        self.found = found
        self.head: fx.Node | None = None
        """The last placeholder."""
        self._seeds: dict[str, fx.Node] = {}

    @contextmanager
    def place(self, new: fx.Node, old: fx.Node, consumer: fx.Node, completes: bool = False) -> Iterator[str]:
        """Insert what is made inside the context in its place; gives the path of the module it is counted to.

        What completes a sum stands with the sum.
        """
        units = {unit(user.meta.get("module", "")) for user in old.users if user.op != "output"}
        mine = old.meta.get("module", "")
        if (
            not completes
            and units == {unit(consumer.meta.get("module", ""))}
            and (unit(mine) not in units or new.op == "placeholder")
        ):
            yield common([user.meta.get("module", "") for user in old.users])
            return
        after = self.head if new.op == "placeholder" else new
        assert after is not None
        with self.graph.inserting_after(after):
            yield mine
        if new.op == "placeholder":
            self.head = after.next

    @contextmanager
    def at_head(self) -> Iterator[None]:
        """Insert what is made inside the context after the placeholders, and after what was inserted so before."""
        assert self.head is not None
        stop = self.head.next
        with self.graph.inserting_before(stop):
            yield
        self.head = stop.prev

    def seed(self, name: str) -> fx.Node:
        """The placeholder of a seed, after all others, made when it is first asked for."""
        if name not in self._seeds:
            last = next(node for node in reversed(self.graph.nodes) if node.op == "placeholder")
            with self.graph.inserting_after(last):
                made = self._seeds[name] = self.graph.placeholder(name)
            kind = "prepared" if name == SEED else "input"
            made.meta = {"kind": kind, "name": name, "val": 0, "grad": False, "module": "", "source": ""}
            if self.head is last:
                self.head = made
        return self._seeds[name]


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """Append a placeholder of just that name; torch's own would write `X` as `x`."""
    return graph.create_node("placeholder", name, name=name)


def unit(path: str) -> str:
    """The innermost repeated module that a path lies in: the path up to its last number, or nothing."""
    words = path.split(".")
    while words and not words[-1].isdigit():
        words.pop()
    return ".".join(words)


def common(paths: list[str]) -> str:
    """The longest module path that contains all of these."""
    words = [path.split(".") for path in paths]
    shared = []
    for level in zip(*words):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
