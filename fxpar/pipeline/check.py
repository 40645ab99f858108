"""Is a row of stages the graph that it was cut from?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from fxpar.errors import PipelineError, raise_all
from fxpar.pipeline.effects import is_random, owners, written
from fxpar.pipeline.stages import Stage


def check(graph: fx.Graph, stages: Sequence[Stage]) -> None:
    """Check that the stages, run one after the other, compute what the whole graph computes.

    Every node that matters runs in some stage, a random one in a single stage; each copy does the same to the same
    values; each stage receives what the one before it sends; the last one returns the graph's outputs. Raises
    `PipelineError`, or several together, where that is not so.
    """
    errors = [error for stage in stages for error in _strays(graph, stage)]
    for before, after in pairwise(stages):
        if before.sent != after.received:
            sent, received = [v.name for v in before.sent], [v.name for v in after.received]
            what = f"stage {before.index} sends {sent}, stage {after.index} receives {received}"
            errors.append(PipelineError(what))
    errors += _missing(graph, stages)
    whole, last = _results(graph), _results(stages[-1].graph)
    if whole != last:
        errors.append(PipelineError(f"the graph returns {whole}, the last stage returns {last}"))
    raise_all(errors)


def _signature(node: fx.Node) -> tuple[Any, ...]:
    """What a node does, in names that are the same in every stage."""
    return (node.op, node.target, *map_arg((node.args, node.kwargs), lambda source: source.name))


def _own(stage: Stage) -> list[fx.Node]:
    """The nodes of a stage that stem from the whole graph and are not given to it."""
    return [node for node in stage.graph.nodes if node.op == "call_function" and "added" not in node.meta]


def _strays(graph: fx.Graph, stage: Stage) -> list[PipelineError]:
    known = {node.name: _signature(node) for node in graph.nodes}
    wrong = [node for node in _own(stage) if known.get(node.name) != _signature(node)]
    return [
        PipelineError(f"stage {stage.index}: node `{node.name}` is not what it is in the graph")
        for node in wrong
    ]


def _missing(graph: fx.Graph, stages: Sequence[Stage]) -> list[PipelineError]:
    runs: dict[str, int] = {}
    for stage in stages:
        for node in _own(stage):
            runs[node.name] = runs.get(node.name, 0) + 1
    errors = []
    for node in _live(graph):
        count = runs.get(node.name, 0)
        if node.op == "call_function" and (count == 0 or (count > 1 and is_random(node))):
            errors.append(PipelineError(f"node `{node.name}` runs in {count} stages"))
    return errors


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the graph's outputs or a change of a buffer depend on."""
    owner = owners(graph)
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        changes_state = any(owner[target].op == "placeholder" for target in written(node))
        if node.op == "output" or changes_state or not live.isdisjoint(node.users):
            live.add(node)
    return [node for node in graph.nodes if node in live]


def _results(graph: fx.Graph) -> list[str]:
    results = graph.output_node().args[0]
    assert isinstance(results, tuple | list)
    return [str(_origin(result)) for result in results]


def _origin(result: Any) -> Any:
    while isinstance(result, fx.Node) and "added" in result.meta:
        result = result.args[0]
    return result
