"""Find the layers of a flat graph: the calls of modules that stand numbered beside others of their class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx
from torch.utils import _pytree as pytree

from fxpar.size import Size


@dataclass(frozen=True)
class Key:
    """One call of one layer: the layer's module path, and whether it is its first call, second, ..."""

    path: str
    call: int

    @property
    def container(self) -> str:
        """The path of the module that numbers the layer."""
        return self.path.rpartition(".")[0]


@dataclass(eq=False)
class Layer:
    """The nodes of one call of one layer, with the values that go in, by first use, and out, the last one first."""

    key: Key
    nodes: list[fx.Node]
    inputs: list[fx.Node] = field(default_factory=list)
    """Values made outside; also parameters and buffers that belong to another module."""
    outputs: list[fx.Node] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """The `counted` numbers among the nodes' arguments."""

    def owns(self, placeholder: fx.Node) -> bool:
        """Whether a placeholder is a parameter, buffer or constant inside of the layer's module."""
        name: str = placeholder.meta.get("name", "")
        held = placeholder.meta.get("kind") in ("parameter", "buffer", "constant")
        return held and name.startswith(f"{self.key.path}.")

    def connect(self) -> None:
        """Find `inputs`, `outputs` and `numbers` from the graph."""
        inside = set(self.nodes)
        used = (value for node in self.nodes for value in node.all_input_nodes)
        outside = (value for value in used if value not in inside)
        self.inputs = [value for value in dict.fromkeys(outside) if not self.owns(value)]
        made = [node for node in self.nodes if any(user not in inside for user in node.users)]
        self.outputs = made[-1:] + made[:-1]
        arguments = (pytree.tree_leaves((node.args, node.kwargs)) for node in self.nodes)
        self.numbers = list(
            dict.fromkeys(int(leaf) for leaves in arguments for leaf in leaves if counted(leaf))
        )


def counted(value: object) -> bool:
    """Say whether a number only tells one op from the others of its kind, as what a random op adds to the seed.

    Such a number is of a class of its own, derived from int. Layers that differ in nothing else are alike: their
    function takes the number as an argument.
    """
    return isinstance(value, int) and type(value) not in (int, bool, Size)


def candidates(modules: Mapping[str, str]) -> dict[str, int]:
    """Return every numbered module that has submodules, with how many of its class are numbered beside it.

    `modules` has the class name of every module by path.
    """
    parents = {name.rpartition(".")[0] for name in modules}
    numbered = [
        name for name in modules if "." in name and name.rpartition(".")[2].isdigit() and name in parents
    ]
    kinds = {name: (name.rpartition(".")[0], modules[name]) for name in numbered}
    counts = Counter(kinds.values())
    return {name: counts[kind] for name, kind in kinds.items()}


def find_layers(
    nodes: Sequence[fx.Node], siblings: Mapping[str, int], refused: Collection[str] = ()
) -> dict[fx.Node, Key]:
    """Return the call of a layer that each node belongs to; nodes of no layer are left out.

    A layer is one of the `candidates` that has a sibling of its class or is called more than once. Of nested ones
    the outermost counts. `refused` are paths of layers, or of the modules that hold them, to be passed over.
    """
    found: dict[str, list[fx.Node]] = {}
    for node in nodes:
        if path := _layer_path(node.meta.get("module", ""), siblings, refused):
            found.setdefault(path, []).append(node)
    keys: dict[fx.Node, Key] = {}
    for path, members in found.items():
        calls = _calls(path, members)
        if siblings[path] > 1 or max(calls.values(), default=0) > 0:
            keys |= {node: Key(path, call) for node, call in calls.items()}
            _place_inserted(path, members, keys)
    return keys


def _place_inserted(path: str, nodes: Sequence[fx.Node], keys: dict[fx.Node, Key]) -> None:
    """Count nodes that a pass put into a layer to the call that uses them, else to the one that made their input."""
    users = [(node, list(node.users)) for node in reversed(nodes)]
    for node, related in [*users, *((node, node.all_input_nodes) for node in nodes)]:
        near = {keys[other] for other in related if other in keys and keys[other].path == path}
        if node not in keys and len(near) == 1:
            keys[node] = near.pop()


def nests(path: str, siblings: Mapping[str, int]) -> bool:
    """Say whether a layer has layers in it."""
    return any(count > 1 and name.startswith(f"{path}.") for name, count in siblings.items())


def _layer_path(module: str, siblings: Mapping[str, int], refused: Collection[str]) -> str:
    """Return the outermost layer that a module is or is in, or nothing."""
    parts = module.split(".")
    for length in range(2, len(parts) + 1):
        path = ".".join(parts[:length])
        if path in siblings and path not in refused and ".".join(parts[: length - 1]) not in refused:
            return path
    return ""


def _calls(path: str, nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Number the calls of a layer: every module in it is called equally often in each call of the layer.

    Nodes without a call were put in by a pass, and are left out. Returns nothing where that does not come out even:
    the layer is then no unit.
    """
    seen: dict[str, set[int]] = {}
    nodes = [node for node in nodes if "call" in node.meta]
    if not nodes:
        return {}
    for node in nodes:
        seen.setdefault(node.meta["module"], set()).add(node.meta["call"])
    count = len(seen[path]) if path in seen else min(map(len, seen.values()))
    if any(len(calls) % count for calls in seen.values()):
        return {}
    ranks = {
        module: {call: rank for rank, call in enumerate(sorted(calls))} for module, calls in seen.items()
    }
    return {node: _call(node, ranks, count) for node in nodes}


def _call(node: fx.Node, ranks: Mapping[str, Mapping[int, int]], count: int) -> int:
    ranked = ranks[node.meta["module"]]
    return ranked[node.meta["call"]] * count // len(ranked)


def members(keys: Mapping[fx.Node, Key], nodes: Sequence[fx.Node]) -> Iterator[tuple[Key, list[fx.Node]]]:
    """Yield each call of a layer with its nodes, in the order of the graph."""
    groups: dict[Key, list[fx.Node]] = {}
    for node in nodes:
        if node in keys:
            groups.setdefault(keys[node], []).append(node)
    yield from groups.items()
