"""Names for values: what made them, in the model's own words, each once."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from fxpar.emit.callee import word

#: What a value is never called: what emitted code says otherwise, and letters that look like digits.
RESERVED = {"self", "torch", "nn", "F", "math", "operator", "device", "layer", "i", "l", "O", "I", "_"}
_LIMIT = 40
#: Ops whose values have a shorter name than they.
_SHORT = {"scaled_dot_product_attention": "attention", "split_with_sizes": "split"}
#: Ops that only dress a value up: what stands before them says more.
_DRESSING = ("aten.to.", "aten.contiguous.", "aten.alias.", "aten.detach.", "aten.clone.")


class Names:
    """Gives out names, each once: `linear`, `linear_2`, ..."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken) | RESERVED
        self.counts: dict[str, int] = {}

    def give(self, wish: str) -> str:
        """Return the wished name as an identifier, or with the first free number behind it."""
        return self.number(identifier(wish))

    def number(self, wish: str) -> str:
        """Return the wished name as it is, or with the first free number behind it."""
        number = self.counts.get(wish, 1)
        name = wish if number == 1 and not _is_word(wish) else f"{wish}_{number}"
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        self.counts[wish] = number + 1
        return name


def identifier(text: str) -> str:
    """Return a text as a short Python identifier in small letters."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", text).lower()
    name = re.sub(r"\W+", "_", snake, flags=re.ASCII).strip("_")[:_LIMIT].strip("_")
    return name if name and not name[0].isdigit() else f"value_{name}".strip("_")


def wishes(nodes: Sequence[fx.Node], home: str) -> dict[fx.Node, str]:
    """Return a name for each node of a body: its op's, or its module's where it is what the module returns.

    `home` is the path of the module whose body it is: its own results have no better name than their op's.
    Where several values leave a module, the op is added: `rotary_emb_cos`.
    """
    found: dict[fx.Node, str] = {}
    for run in _runs(nodes):
        path = run[0].meta.get("module", "")
        leaving = {node for node in run if any(not _inside(user, path) for user in node.users)}
        for node in run:
            found[node] = _op_word(node)
            if node in leaving and path != home and path:
                found[node] = _module_word(path)
                if len(leaving) > 1:
                    found[node] += f"_{_op_word(_telling(node))}"
    return found


def class_name(text: str) -> str:
    """Return a text as the name of a class."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "Layer"
    return name[0].upper() + name[1:] if name[0].isalpha() else f"Layer{name}"


def _runs(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    runs: list[list[fx.Node]] = []
    for node in nodes:
        if runs and runs[-1][0].meta.get("module", "") == node.meta.get("module", ""):
            runs[-1].append(node)
        else:
            runs.append([node])
    return runs


def _inside(node: fx.Node, path: str) -> bool:
    module = node.meta.get("module", "")
    return node.op != "output" and (module == path or module.startswith(f"{path}."))


def _telling(node: fx.Node) -> fx.Node:
    """Go back from a value over casts and scalings to the op that says what it is."""
    while str(node.target).startswith(_DRESSING) or _scales(node):
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_function":
            break
        node = before
    return node


def _scales(node: fx.Node) -> bool:
    return str(node.target) == "aten.mul.Tensor" and not isinstance(node.args[1], fx.Node)


def _op_word(node: fx.Node) -> str:
    """Return the word for what a node calls; where that only calls an op that it is given, the op's."""
    given = node.args[0] if node.args else None
    found = word(given if isinstance(given, torch._ops.OpOverload) else node.target)
    return _SHORT.get(found, found)


def _module_word(path: str) -> str:
    """Return the last part of a module path, with the one before it where it is a number."""
    parts = path.split(".")
    words = [part for part in parts if not part.isdigit()]
    return f"{words[-1]}_{parts[-1]}" if parts[-1].isdigit() and words else parts[-1]


def _is_word(name: str) -> bool:
    return keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name)
