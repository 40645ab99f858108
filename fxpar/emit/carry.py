"""Which values take over each other's names: the hidden state that goes from layer to layer is one variable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import fx

from fxpar.emit.arrange import Item
from fxpar.emit.layers import Layer
from fxpar.emit.names import Names, wishes

_HELD = ("parameter", "buffer", "constant")
#: The name of a value that goes from layer to layer.
HIDDEN = "hidden"


def carried(items: Sequence[Item], names: Names) -> dict[fx.Node, str]:
    """Name the values that layers turn into each other.

    A layer's result takes the name of an argument of the same shape and dtype that nothing uses afterwards. So calls
    of alike layers are alike in text, and the old value is freed.
    """
    last = _last_uses(items)
    chain: dict[fx.Node, fx.Node] = {}
    for place, item in enumerate(items):
        if isinstance(item, tuple):
            _join(item[0], [value for value in item[0].inputs if last[value] == place], chain)
    found: dict[fx.Node, str] = {}
    for node, head in chain.items():
        if head not in found:
            found[head] = head.name if head.op == "placeholder" else names.give(HIDDEN)
        found[node] = found[head]
    return found


def _join(layer: Layer, ending: Sequence[fx.Node], chain: dict[fx.Node, fx.Node]) -> None:
    """Let results go on under the names of arguments that end here, first those that are already carried."""
    free = sorted(
        (value for value in ending if value.meta.get("kind") not in _HELD), key=lambda v: v not in chain
    )
    for result in layer.outputs:
        match = next((value for value in free if _alike(value, result)), None)
        if match is not None:
            free.remove(match)
            chain[result] = chain.setdefault(match, match)


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and list(map(str, a.shape)) == list(map(str, b.shape))


def _last_uses(items: Sequence[Item]) -> dict[fx.Node, int]:
    """The place of the last item that uses each value; what the graph returns is used after all."""
    places: dict[fx.Node, int] = {}
    for place, item in enumerate(items):
        nodes = item[0].nodes if isinstance(item, tuple) else item
        for value in (value for node in nodes for value in node.all_input_nodes):
            places[value] = place
    returned = (value for value in places if any(user.op == "output" for user in value.users))
    return places | {value: len(items) for value in list(returned)}


def gathered(items: Sequence[Item], fixed: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Return the results of layers that are gathered in lists, with the name of what they are.

    Those are the results that no other layer uses and that several layers of a container have, one each: the scores of
    every router, for a loss at the end. `fixed` are values that have a name already.
    """
    inside = {node for item in items if isinstance(item, tuple) for node in item[0].nodes}
    found: dict[str, list[fx.Node]] = {}
    for item in items:
        if isinstance(item, tuple):
            layer, _ = item
            own, wished = set(layer.nodes), wishes(layer.nodes, layer.key.path)
            counts = Counter(wished[node] for node in layer.outputs)
            for node in layer.outputs:
                alone = counts[wished[node]] == 1 and node not in fixed
                if alone and not any(user in inside and user not in own for user in node.users):
                    found.setdefault(f"{layer.key.container}.{wished[node]}", []).append(node)
    return {node: name for name, nodes in found.items() if len(nodes) > 1 for node in nodes}
