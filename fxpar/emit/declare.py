"""The statements of a constructor: tensors, layers and ties, in the order of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from fxpar.emit.access import access
from fxpar.emit.classes import Classes, LayerClass
from fxpar.emit.fold import PREFIX, TEXT_SLOT
from fxpar.emit.literals import string
from fxpar.emit.text import Statement, call


def declarations(classes: Classes, held: Sequence[fx.Node], ties: Mapping[str, str]) -> list[Statement]:
    """Return the statements that make the tensors `held` and the layers; a layer stands where its first tensor is.

    `ties` are the further names of tensors. Layers have their number in a slot.
    """
    layers = classes.by_path()
    statements: list[Statement] = []
    made: set[str] = set()
    for node in held:
        path = _owner(node.meta["name"], layers)
        if not path:
            statements.append(classes.declaration(node))
        elif path not in made:
            statements.append(_construction(path, layers[path]))
            made.add(path)
    statements += [_construction(path, kind) for path, kind in layers.items() if path not in made]
    names = {node.meta["name"] for node in held}
    tied = {name: target for name, target in ties.items() if target in names}
    return statements + [Statement(call("tie", "self", string(a), string(b))) for a, b in tied.items()]


def children(classes: Classes, held: Sequence[fx.Node]) -> dict[str, list[int]]:
    """Return the numbers of all children of each container of layers, by its text, in the order of their making."""
    layers = classes.by_path()
    paths = [*(node.meta["name"] for node in held), *layers]
    found: dict[str, list[int]] = {}
    for container in dict.fromkeys(path.rpartition(".")[0] for path in layers):
        inside = [path.removeprefix(f"{container}.") for path in paths if path.startswith(f"{container}.")]
        names = list(dict.fromkeys(name.partition(".")[0] for name in inside))
        if all(name.isdigit() for name in names):
            found[access("self", container)] = [int(name) for name in names]
    return found


def _construction(path: str, kind: LayerClass) -> Statement:
    container, _, number = path.rpartition(".")
    arguments = ["self.groups", "device"] if kind.uses_groups else ["device"]
    name = f'{PREFIX}"{container}.{TEXT_SLOT}"'
    expression = call("submodule", "self", name, f"{kind.name}({', '.join(arguments)})")
    return Statement(expression, numbers=(int(number),))


def _owner(name: str, layers: Mapping[str, LayerClass]) -> str:
    """Return the layer that a tensor is in, or nothing."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in layers), "")
