"""The layers of a model, and cuts that the plan counts in them: `layers: [5, 9, 9, 9]`.

tokens | layers.0 ... layers.4 | layers.5 ... layers.13 | ...        a stage begins with a layer
[0, 6, 6, 0]   tokens | layers.0-5 | layers.6-11 | norm, head        or has what is before or behind them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from math import gcd

from torch import fx

from fxpar.errors import PipelineError, Place
from fxpar.pipeline.flow import Flow

#: Two numbered modules are alike if they share so much of the modules inside them.
ALIKE = 0.5


@dataclass(frozen=True)
class Layer:
    """A call of a layer: the path of its module, and the positions in line at which it begins and ends."""

    path: str
    start: int
    end: int


def layers(flow: Flow) -> list[Layer]:
    """The calls of the model's layers, in the order of the graph.

    A layer is a module in a numbered container, `decoder.block.3`, the outermost one that is repeated; all such stacks
    of the model count. Modules that have none inside, as those of an `nn.Sequential`, count only where there are no
    others. A module that is called several times is a layer at each call.
    """
    stacks = _stacks([_parts(node) for node in flow.line], 0)
    nodes: dict[str, list[int]] = {}
    for position, node in enumerate(flow.line):
        path = _layer(_parts(node), stacks)
        if path:
            nodes.setdefault(path, []).append(position)
    return sorted(
        (layer for path, places in nodes.items() for layer in _calls(flow, path, places)),
        key=lambda layer: layer.start,
    )


def _parts(node: fx.Node) -> tuple[str, ...]:
    return tuple(node.meta.get("module", "").split("."))


def _layer(parts: tuple[str, ...], stacks: set[tuple[str, ...]]) -> str:
    """The layer that a module is, or is part of."""
    for length in range(len(parts)):
        if parts[:length] in stacks and parts[length].isdecimal():
            return ".".join(parts[: length + 1])
    return ""


def _stacks(modules: Sequence[tuple[str, ...]], begin: int) -> set[tuple[str, ...]]:
    """The paths of the containers of layers; those with modules inside, if there are any."""
    found: dict[tuple[str, ...], bool] = {}
    for stem, members in _containers(modules, begin).items():
        inside = [parts for parts in modules if parts[: len(stem)] == stem]
        inner = set() if _is_repeated(members) else _stacks(inside, len(stem) + 1)
        deeper = {each for each in inner if _is_repeated(_containers(inside, len(each))[each])}
        for each in deeper or {stem}:
            own = _containers(inside, len(each))[each]
            found[each] = any(path for member in own.values() for path in member)
    return {stem for stem, compound in found.items() if compound or not any(found.values())}


def _containers(
    modules: Iterable[tuple[str, ...]], begin: int
) -> dict[tuple[str, ...], dict[str, set[tuple[str, ...]]]]:
    """The modules inside each member of the outermost numbered containers below a depth."""
    found: dict[tuple[str, ...], dict[str, set[tuple[str, ...]]]] = {}
    for parts in modules:
        number = next((i for i in range(begin, len(parts)) if parts[i].isdecimal()), None)
        if number is not None:
            found.setdefault(parts[:number], {}).setdefault(parts[number], set()).add(parts[number + 1 :])
    return found


def _is_repeated(members: Mapping[str, set[tuple[str, ...]]]) -> bool:
    """Whether two members that have modules inside are alike; a single member is not asked."""
    sets = [inside for inside in members.values() if any(inside)]
    return len(members) == 1 or any(
        len(a & b) >= ALIKE * len(a | b) for i, a in enumerate(sets) for b in sets[:i]
    )


def _calls(flow: Flow, path: str, places: Sequence[int]) -> Iterator[Layer]:
    """The calls of a layer: as many as divide the calls of each module in it, each from its first module on."""
    own = [place for place in places if not _is_shared(flow.line[place])] or list(places)
    calls: dict[tuple[str, ...], dict[int, int]] = {}
    for place in own:
        node = flow.line[place]
        calls.setdefault(_parts(node), {}).setdefault(node.meta.get("call", 0), place)
    count = gcd(*(len(of_module) for of_module in calls.values()))
    first = list(calls[_parts(flow.line[own[0]])].values())
    starts = first[:: len(first) // count]
    for start, stop in pairwise((*starts, len(flow.line))):
        yield Layer(path, start, max(place for place in places if place < stop) + 1)


def _is_shared(node: fx.Node) -> bool:
    """Whether a node is an inserted collective, which belongs to both sides of it."""
    return str(node.target).startswith("fxpar.")


def layer_positions(
    flow: Flow, stages: int, counts: Sequence[int], place: Place | None = None
) -> tuple[int, ...]:
    """The positions at which stages begin that have so many layers each.

    What lies between two layers goes with the first, what is before all of them with the first stage, what is behind
    them with the last. A stage of 0 layers has that alone.

    Raises `PipelineError` if there are not as many numbers as stages, or if they do not add up to the number of layers,
    a stage would have nothing, or begins where no cut may lie.
    """
    if len(counts) != stages:
        what = f"{stages} stages need {stages} numbers of layers, `layers` has {len(counts)}"
        raise PipelineError(what, place=place, details=[str(list(counts))])
    known = layers(flow)
    if not known:
        what = "the model has no layers to count: none of its modules stand in a numbered container"
        raise PipelineError(what, place=place, details=["`at` names modules to begin stages with"])
    if sum(counts) != len(known):
        what = f"`layers` counts {sum(counts)} layers, the model has {len(known)}"
        raise PipelineError(what, place=place, details=[f"its layers are {', '.join(names(known))}"])
    positions: list[int] = []
    for stage, (before, count) in enumerate(zip(accumulate(counts), counts[1:])):
        alone = count == 0 and before > 0
        position = known[before - 1].end if alone or before == len(known) else known[before].start
        if position <= (positions[-1] if positions else 0) or position >= len(flow.line):
            empty = stage + 1 if position >= len(flow.line) else stage
            what = f"stage {empty} would be empty: it has 0 layers, and nothing else is left for it"
            raise PipelineError(what, place=place, details=[str(list(counts))])
        if position in flow.barred:
            what = f"stage {stage + 1} cannot begin there: a value is changed in place before and after that"
            raise PipelineError(what, place=place, details=[_where(flow, position)])
        positions.append(position)
    return tuple(positions)


def _where(flow: Flow, position: int) -> str:
    node = flow.line[position]
    return f"{node.meta.get('module') or 'the model'} ({node.meta.get('source')})"


def names(known: Sequence[Layer]) -> list[str]:
    """The layers in few words: `encoder.block.0-5`, and `layers.0 (12 calls)` where one is called in a row."""
    words: list[str] = []
    runs = [(path, len(list(calls))) for path, calls in groupby(layer.path for layer in known)]
    for stem, group in groupby(_numbered(runs), key=lambda run: (run[0], run[1] - run[3], run[2])):
        numbers = [number for _, number, _, _ in group]
        several = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        words.append(f"{stem[0]}.{several}" + (f" ({stem[2]} calls)" if stem[2] > 1 else ""))
    return words


def _numbered(runs: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, int, int]]:
    """The container, number and calls of each layer, and its index."""
    for index, (path, calls) in enumerate(runs):
        stem, _, number = path.rpartition(".")
        yield stem, int(number), calls, index


def layer_counts(flow: Flow, positions: Sequence[int]) -> list[int]:
    """How many layers begin in each stage."""
    starts = [layer.start for layer in layers(flow)]
    ends = pairwise((0, *positions, len(flow.line)))
    return [sum(begin <= start < end for start in starts) for begin, end in ends]
