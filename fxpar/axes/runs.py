"""Sizes and runs of dims that are cut along some of their factors, in plain numbers: no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from fxpar.axes.factor import Cat, Dim, Factor, Term, size_of

#: (start in the whole dim, start on the rank, length) of consecutive indexes; a rank's runs stand in local order.
Run = tuple[int, int, int]


def cut_size(dim: Dim, cuts: Mapping[Factor, int]) -> int:
    """The length of a resolved dim on one rank; `cuts` says into how many parts each split factor goes.

    Parts of a factor that does not divide are all as long as the first one; the last ones end in padding.
    """
    return prod(_cut_term(term, cuts) for term in dim)


def _cut_term(term: Term, cuts: Mapping[Factor, int]) -> int:
    if isinstance(term, Cat):
        return sum(cut_size(part, cuts) for part in term.parts)
    return part_size(term, cuts.get(term, 1))


def part_size(factor: Factor, parts: int) -> int:
    """The length of one of several parts of a factor, rounded up."""
    return -(-factor.size // parts)


def dim_runs(dim: Dim, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    """The runs of a resolved dim that are left when each split factor keeps one of its parts."""
    cuts = {factor: parts for factor, (parts, _) in chosen.items()}
    runs: list[Run] = [(0, 0, 1)]
    inner = local = 1
    for term in reversed(dim):
        whole = runs == [(0, 0, inner)] and local == inner
        mine = _term_runs(term, chosen)
        if whole:
            runs = [(start * inner, at * inner, length * inner) for start, at, length in mine]
        else:
            indexes = [(start + k, at + k) for start, at, length in mine for k in range(length)]
            runs = [
                (i * inner + start, j * local + at, length) for i, j in indexes for start, at, length in runs
            ]
        inner, local = inner * term.size, local * cut_size((term,), cuts)
    return _joined(runs) or [(inner, 0, 0)]


def _term_runs(term: Term, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    if isinstance(term, Cat):
        return _cat_runs(term, chosen)
    parts, index = chosen.get(term, (1, 0))
    length = part_size(term, parts)
    return [(index * length, 0, max(0, min(length, term.size - index * length)))]


def _cat_runs(cat: Cat, chosen: Mapping[Factor, tuple[int, int]]) -> list[Run]:
    cuts = {factor: parts for factor, (parts, _) in chosen.items()}
    runs, start, local = [], 0, 0
    for part in cat.parts:
        runs += [(start + s, local + at, length) for s, at, length in dim_runs(part, chosen)]
        start, local = start + size_of(part), local + cut_size(part, cuts)
    return runs


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that follow each other in the whole and on the rank become one; empty ones go."""
    out: list[Run] = []
    for start, at, length in runs:
        if out and (out[-1][0] + out[-1][2], out[-1][1] + out[-1][2]) == (start, at):
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + length)
        elif length:
            out.append((start, at, length))
    return out
