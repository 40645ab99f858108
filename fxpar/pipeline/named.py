"""Cuts that the plan names: each stage begins with a module."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from fxpar.errors import PipelineError, Place
from fxpar.pipeline.flow import Flow

#: How many modules an error lists.
LISTED = 6


def named_positions(flow: Flow, stages: int, at: Sequence[str], place: Place | None) -> tuple[int, ...]:
    """The positions before the first nodes of the modules `at`, sorted.

    Raises `PipelineError` if their number is not `stages - 1`, if a module does not exist, computes nothing in line,
    is called at several places, begins where no cut may lie, or begins where another of them does.
    """
    if len(at) != stages - 1:
        what = f"{stages} stages need {stages - 1} modules to begin with, `at` names {len(at)}"
        raise PipelineError(what, place=place, details=[", ".join(at)])
    found: dict[int, str] = {}
    for path in at:
        position = _position(flow, path, place)
        if position in found:
            what = f"`{found[position]}` and `{path}` begin at the same node: a stage between them would be empty"
            raise PipelineError(what, place=place)
        found[position] = path
    return tuple(sorted(found))


def _position(flow: Flow, path: str, place: Place | None) -> int:
    calls = _calls(flow, path)
    if not calls:
        raise PipelineError(_why_none(flow, path), place=place, details=[_candidates(flow, path)])
    if len(calls) > 1:
        what = f"module `{path}` is called at {len(calls)} places of the graph: which one begins the stage is open"
        raise PipelineError(what, place=place, details=[_candidates(flow, path)])
    if calls[0] == 0:
        what = f"module `{path}` begins the graph: the stage before it would be empty"
        raise PipelineError(what, place=place, details=[_candidates(flow, path)])
    if calls[0] in flow.barred:
        what = f"no stage can begin with module `{path}`: a value is changed in place before and after its first node"
        raise PipelineError(what, place=place, details=[_candidates(flow, path)])
    return calls[0]


def _calls(flow: Flow, path: str) -> list[int]:
    """Where the calls of a module begin: at a first node inside it, or where its first submodule is called again."""
    starts: list[int] = []
    inside: dict[str, int] = {}
    for position, node in enumerate(flow.line):
        if str(node.target).startswith("fxpar."):  # an inserted collective belongs to both sides
            continue
        module, call = node.meta.get("module", ""), node.meta.get("call", 0)
        if module != path and not module.startswith(path + "."):
            inside = {}
        elif inside.get(module, call) != call or not inside:
            starts.append(position)
            inside = {module: call}
    return starts


def _why_none(flow: Flow, path: str) -> str:
    modules = {node.meta.get("module", "") for node in flow.kind}
    if any(module == path or module.startswith(path + ".") for module in modules):
        return (
            f"module `{path}` cannot begin a stage: what it computes is computed again wherever it is needed"
        )
    return f"no node of the graph comes from a module `{path}`"


def _candidates(flow: Flow, path: str) -> str:
    names = candidates(flow)
    close = get_close_matches(path, names, LISTED, cutoff=0.8) or names
    listed = ", ".join(close[:LISTED]) + (f", ... ({len(close)} in all)" if len(close) > LISTED else "")
    return f"a stage can begin with: {listed}" if close else "no module can begin a stage"


def candidates(flow: Flow) -> list[str]:
    """The modules that a stage can begin with, outer ones first, in the order of the graph."""
    names: dict[str, int] = {}
    for node in flow.line[1:]:
        parts = node.meta.get("module", "").split(".")
        for depth in range(1, len(parts) + 1):
            names.setdefault(".".join(parts[:depth]), depth)
    possible = []
    for name in sorted((name for name in names if name), key=lambda name: names[name]):
        calls = _calls(flow, name)
        if len(calls) == 1 and calls[0] > 0 and calls[0] not in flow.barred:
            possible.append(name)
    return possible
