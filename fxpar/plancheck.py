"""What each setting of a plan may be. Every check gives all that is wrong with one setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from fxpar.errors import FxparError
from fxpar.mesh import MESH_DIMS
from fxpar.schedule import SCHEDULES
from fxpar.yamlfile import Node, suggest

#: The word for stages that fxpar chooses.
BALANCED = "balanced"
#: What axes may be split over: every mesh dim whose ranks share a stage, and `mb`, the microbatches of one step.
SPLIT_DIMS = (*MESH_DIMS[1:], "mb")

Check: TypeAlias = Callable[[Node], Iterator[FxparError]]


def _check(demand: Callable[[Node], object]) -> Check:
    def check(node: Node) -> Iterator[FxparError]:
        try:
            demand(node)
        except FxparError as error:
            yield error

    return check


def _unbuilt(what: str) -> Check:
    def demand(node: Node) -> None:
        if (size := node.integer(1)) > 1:
            raise node.wrong(f"{what} = {size} is not built yet", "leave it at 1")

    return _check(demand)


def _optional(check: Check) -> Check:
    return lambda node: iter(()) if node.value is None else check(node)


def _texts(node: Node) -> Iterator[FxparError]:
    for entry in node.one_or_more():
        yield from _check(Node.text)(entry)


def _cut(node: Node) -> Iterator[FxparError]:
    try:
        if isinstance(node.value, str):
            node.choice((BALANCED,))
            return
        ways = node.mapping(NESTED["cut"])
        if len(ways) != 1:
            what = "`at` and `layers` exclude each other" if ways else "wants `at` or `layers`"
            raise node.wrong(what, "`cut: balanced` leaves the choice to fxpar")
    except FxparError as error:
        yield error
        return
    if "at" in ways:
        yield from _texts(ways["at"])
    else:
        yield from _counts(ways["layers"])


def _counts(node: Node) -> Iterator[FxparError]:
    try:
        counts = node.list()
    except FxparError as error:
        yield error
        return
    if not counts:
        yield node.wrong("wants a number of layers for each stage, has none")
    for count in counts:
        yield from _check(lambda count: count.integer(0))(count)


def _splits(node: Node) -> Iterator[FxparError]:
    try:
        rows = node.mapping()
    except FxparError as error:
        yield error
        return
    for axis, value in rows.items():
        names: list[str] = []
        for word in value.one_or_more() if value.value is not None else ():
            yield from _check(partial(_split, axis=axis, names=names))(word)


def _split(word: Node, axis: str, names: list[str]) -> None:
    """Check one mesh dim of a row, `names` being those before it."""
    name = word.text().removesuffix("?").removesuffix("~")
    if name == "pp":
        raise word.wrong("`pp` splits no axis: each of its ranks holds a stage", *suggest(name, SPLIT_DIMS))
    if name not in SPLIT_DIMS:
        raise word.wrong(f"`{name}` is no mesh dim", *suggest(name, SPLIT_DIMS))
    if name in names:
        raise word.wrong(f"`{name}` stands twice in the row of `{axis}`")
    names.append(name)


def _axes(node: Node) -> Iterator[FxparError]:
    names: list[str] = []
    for entry in node.one_or_more():
        try:
            name = entry.text()
        except FxparError as error:
            yield error
            continue
        if name in names:
            yield entry.wrong(f"axis `{name}` stands twice in `dynamic`")
        names.append(name)


_SIZE = _check(lambda node: node.integer(1))

#: By the name of the setting, in the order in which a plan is written.
CHECKS: dict[str, Check] = {
    "tp": _SIZE,
    "pp": _SIZE,
    "dp": _SIZE,
    "cp": _SIZE,
    "ep": _unbuilt("expert parallelism, ep"),
    "vpp": _SIZE,
    "sequence_parallel": _check(Node.flag),
    "schedule": _optional(_check(lambda node: node.choice(tuple(SCHEDULES)))),
    "microbatches": _optional(_SIZE),
    "cut": _optional(_cut),
    "splits": _optional(_splits),
    "rules": _optional(_texts),
    "opaque": _optional(_texts),
    "seed": _check(lambda node: node.integer(0)),
    "dynamic": _optional(_axes),
}
#: The settings that have parts, and what a part is called in messages.
NESTED = {"cut": ("at", "layers"), "splits": ("AXIS",)}
