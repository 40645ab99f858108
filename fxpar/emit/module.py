"""Emit: from a flat graph to the text of a readable Python module."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import fx

from fxpar.emit import describe
from fxpar.emit.arrange import arrange, used
from fxpar.emit.body import Context
from fxpar.emit.callee import callee
from fxpar.emit.classes import Classes, LayerClass, first_tensor_dtype
from fxpar.emit.declare import children, declarations
from fxpar.emit.fold import fold
from fxpar.emit.frame import class_lines, frame
from fxpar.emit.stage import HELD, written
from fxpar.emit.text import STEP


def emit_module(
    graph: fx.Graph,
    *,
    class_name: str,
    title: str,
    modules: Mapping[str, str],
    ties: Mapping[str, str] | None = None,
    persistent: Collection[str] | None = None,
    plan: str = "",
    source: str = "",
) -> str:
    """Return the text of a module with a class that computes a flat graph.

    The class `class_name` holds the graph's parameters, buffers and constants under their original names. Its
    `forward` takes the received values, then the inputs by the names of their placeholders, and returns the flat
    tuple of outputs. The constructor takes `device`, and before it `groups` if the graph has collectives; tensors
    come uninitialised. New tensors are made where the first tensor argument of `forward` is.

    `modules` has the class name of every module of the model by path, `ties` every further name of a tensor with the
    one it has in the graph, and `persistent` the names of what stands in checkpoints (default: all but constants).
    `title`, `plan` and `source` (a hash of what the text was made from) go into its first lines.

    The text is formatted as ruff does, and the same for the same graph. Raises EmitError for an argument in the graph
    that has no text.
    """
    return (
        "\n".join(_Emitter(graph, class_name, modules, ties or {}, persistent).lines(title, plan, source))
        + "\n"
    )


def value_names(graph: fx.Graph, class_name: str, modules: Mapping[str, str]) -> dict[fx.Node, str]:
    """Return what the text of a graph's module calls each value: `layers.3.linear_2` in a layer's function.

    The arguments are those of `emit_module`.
    """
    emitter = _Emitter(graph, class_name, modules, {}, None)
    given, (outputs,) = emitter.given, graph.output_node().args
    found: dict[fx.Node, str] = {}
    body = written(emitter.context, emitter.items, emitter.held, given, outputs)  # type: ignore[arg-type]
    for layer, kind in (item for item in emitter.items if isinstance(item, tuple)):
        scope = emitter.classes.written(layer, kind.arguments).scope
        found |= {node: f"{layer.key.path}.{scope[node]}" for node in layer.nodes if node in scope}
    return {node: name for node, name in body.scope.items() if node not in emitter.held} | found


class _Emitter:
    def __init__(
        self,
        graph: fx.Graph,
        class_name: str,
        modules: Mapping[str, str],
        ties: Mapping[str, str],
        persistent: Collection[str] | None,
    ) -> None:
        self.graph, self.class_name, self.ties = graph, class_name, ties
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.held = [node for node in placeholders if node.meta["kind"] in HELD]
        given = [node for node in placeholders if node.meta["kind"] not in HELD]
        self.given = sorted(given, key=lambda node: node.meta["kind"] != "received")
        called = (node.target for node in graph.nodes if node.op == "call_function")
        imports = frozenset(found for target in called if (found := callee(target)).module)
        self.context = Context(modules.get("", class_name), first_tensor_dtype(placeholders), imports)
        if persistent is None:
            persistent = [node.meta["name"] for node in self.held if node.meta["kind"] == "buffer"]
        self.classes = Classes(self.context, modules, self.held, frozenset(persistent), [class_name])
        self.items = arrange(graph, modules, self.classes)

    def lines(self, title: str, plan: str, source: str) -> Iterator[str]:
        """Yield the lines of the whole text."""
        stage = self.stage()
        code = [line for kind in self.classes.found.values() for line in self.layer_class(kind)]
        kinds = self.classes.found.values()
        bare = (not self.held and not kinds) or any(not kind.tensors for kind in kinds)
        unused = bare or not used(self.items, self.graph).issuperset(self.given)
        heads = (title, plan, source)
        return frame([*code, *stage], self.class_name, self.context.imports, unused, heads)

    def layer_class(self, kind: LayerClass) -> Iterator[str]:
        """Yield the lines of the class of a layer."""
        layer = kind.layers[0]
        declarations = [self.classes.declaration(node, layer.key.path) for node in kind.tensors]
        body = self.classes.written(layer, kind.arguments)
        shapes = [
            f"{name}: {describe.value(node, self.context.usual, body.sizes)}"
            for name, node in zip(kind.arguments, layer.inputs)
        ]
        code = [line for statement in body.with_device(layer.inputs) for line in statement.lines(STEP * 2)]
        made = [line for statement in declarations for line in statement.lines(STEP * 2)]
        title = f"{_listed(kind)}."
        yield from class_lines(kind.name, title, made, kind.arguments, shapes, code, kind.uses_groups)

    def stage(self) -> list[str]:
        """Return the lines of the class itself."""
        (outputs,) = self.graph.output_node().args
        body = written(self.context, self.items, self.held, self.given, outputs)  # type: ignore[arg-type]
        uses_groups = any(kind.uses_groups for kind in self.classes.found.values())
        declared = declarations(self.classes, self.held, self.ties)
        made = list(fold(declared, {}, STEP * 2))
        code = list(fold(body.with_device(self.given), children(self.classes, self.held), STEP * 2))
        uses_groups = uses_groups or any("self.groups." in line for line in code)
        usual = self.context.usual
        shapes = [f"{node.name}: {describe.value(node, usual, body.sizes)}" for node in self.given]
        arguments = [node.name for node in self.given]
        title = f"All of {self.context.root} that runs here."
        return list(class_lines(self.class_name, title, made, arguments, shapes, code, uses_groups))


def _listed(kind: LayerClass) -> str:
    """Return the layers of a class in short: `model.layers 0 to 79`."""
    found: dict[str, list[int]] = {}
    for path in kind.paths:
        container, _, number = path.rpartition(".")
        found.setdefault(container, []).append(int(number))
    return "; ".join(f"{container} {describe.numbers(sorted(n))}" for container, n in found.items())
