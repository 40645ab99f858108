"""Which factor goes over which mesh dim, and whether it divides.

Two mesh dims on one axis take separate factors: `sequence: [cp, tp]` refines 4096 into (2@cp 2048@tp).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod

from torch import fx

from fxpar.axes.factor import Factor, leaves, resolve
from fxpar.axes.unify import refine
from fxpar.errors import FxparError, PlanError, raise_all
from fxpar.shard.problem import Problem
from fxpar.shard.table import Row


def assign(problem: Problem) -> list[str]:
    """Fill `problem.given`; returns a line for every instance that stays whole, or is split unevenly.

    Raises PlanError (several as Violations) for every split that does not divide.
    """
    errors: list[FxparError] = []
    notes: list[str] = []
    for axis, row in problem.table.items():
        over = [m for m in row.over if m in problem.sizes]
        failed: dict[tuple[str, int], list[Factor]] = defaultdict(list)
        for factor in [f for f in problem.naming.rules if problem.naming.axis(f) == axis]:
            if not over or factor.locked or factor.bound is not None:
                continue
            if mesh_dim := _unevenly(problem, row, over, factor):
                problem.given[factor] = mesh_dim
                notes.append(_shares(axis, factor.size, mesh_dim, problem.sizes[mesh_dim]))
            else:
                _assign(problem, over, factor, failed)
        for (mesh_dim, size), factors in failed.items():
            if mesh_dim in row.optional:
                notes.append(
                    f"{axis} = {size} stays whole: it does not divide over {mesh_dim} = {problem.sizes[mesh_dim]}"
                )
            else:
                errors.append(_violation(problem, row, mesh_dim, size, factors))
    raise_all(errors)
    return list(dict.fromkeys(notes))


def _assign(
    problem: Problem, over: list[str], factor: Factor, failed: dict[tuple[str, int], list[Factor]]
) -> None:
    rest = factor
    for position, mesh_dim in enumerate(over):
        parts = problem.sizes[mesh_dim]
        if rest.size % parts:
            failed[mesh_dim, factor.size].append(factor)
            continue
        if position == len(over) - 1 or rest.size == parts:
            problem.given[rest] = mesh_dim
            return
        mine, others = refine(rest, parts, rest.size // parts)
        for piece in (mine, others):
            assert isinstance(piece, Factor)
            problem.naming.rules[piece] = problem.naming.rules[factor]
        problem.given[mine] = mesh_dim  # type: ignore[index]
        rest = others  # type: ignore[assignment]


def _unevenly(problem: Problem, row: Row, over: list[str], factor: Factor) -> str | None:
    """The mesh dim over which a factor that does not divide is split, if the table allows it for one.

    What is stored must have the factor as a dim of its own, so that padding is behind everything in it.
    """
    if factor.size % prod(problem.sizes[m] for m in over) == 0:
        return None
    mesh_dim = next((m for m in over if m in row.uneven and m not in problem.timed), None)
    stored = problem.graph.find_nodes(op="placeholder")
    dims = (
        resolve(d) for n in stored if n.meta["kind"] != "input" for dim in problem.found.dims[n] for d in dim
    )
    return mesh_dim if all(dim == (factor,) or factor not in leaves(dim) for dim in dims) else None


def _shares(axis: str, size: int, mesh_dim: str, ranks: int) -> str:
    """How many of an axis each rank has: `vocab = 97 is split unevenly over tp = 4: 25, 25, 25 and 22`."""
    part = -(-size // ranks)
    if size % ranks == 0:
        return f"{axis} = {size} is split over {mesh_dim} = {ranks} alone: it does not divide over more"
    shares = [str(max(0, min(part, size - index * part))) for index in range(ranks)]
    shown = shares if ranks <= 8 else [shares[0], "...", *shares[-2:]]
    return f"{axis} = {size} is split unevenly over {mesh_dim} = {ranks}: {', '.join(shown[:-1])} and {shown[-1]}"


def _violation(problem: Problem, row: Row, mesh_dim: str, size: int, factors: list[Factor]) -> FxparError:
    number, left, taken = problem.sizes[mesh_dim], size, []
    for before in row.over[: row.over.index(mesh_dim)]:
        if left % problem.sizes.get(before, 1) == 0 and before in problem.sizes:
            left //= problem.sizes[before]
            taken.append(f"{before} = {problem.sizes[before]}")
    rest = f", of which {' and '.join(taken)} leaves {left}" if taken else ""
    divisors = [str(n) for n in range(1, left + 1) if left % n == 0]
    shown = divisors if len(divisors) <= 12 else [*divisors[:11], "...", divisors[-1]]
    allowed = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    details = [f"{where(problem, factors[0])}: {row.axis} = {size}{rest}, {mesh_dim} = {number}"]
    if len(factors) > 1:
        details.append(f"and {len(factors) - 1} more of that size")
    what = f"axis `{row.axis}` does not divide over `{mesh_dim}`"
    return PlanError(what, place=row.place, details=[*details, f"{mesh_dim} may be {allowed}"])


def where(problem: Problem, factor: Factor) -> str:
    """A parameter that has the factor, with the source line that uses it; else an input or a module of the model."""
    piece = next(leaves(resolve((factor,))), factor)
    node = _holder(problem, problem.graph.find_nodes(op="placeholder"), piece)
    if node is None:
        node = next(iter(problem.naming.sightings[factor].values()))
    if node.op == "placeholder":
        source = next((u.meta["source"] for u in node.users if u.meta.get("source")), "")
        name = node.meta["name"]
    else:
        source, name = node.meta.get("source"), node.meta.get("module") or "the model"
    return f"{name} ({source})" if source else f"{name}"


def _holder(problem: Problem, nodes: Iterable[fx.Node], factor: Factor) -> fx.Node | None:
    parameters = (n for n in nodes if n.meta["kind"] == "parameter")
    return next((n for n in parameters if any(factor in [*leaves(dim)] for dim in problem.found.of(n))), None)
