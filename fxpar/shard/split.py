"""The split of one node over one mesh dim."""

from __future__ import annotations

from dataclasses import dataclass

from fxpar.axes.factor import Factor


@dataclass(frozen=True)
class Split:
    """The role and the factor that a node is split on."""

    role: str
    factor: Factor
