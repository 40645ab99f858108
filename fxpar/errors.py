"""The errors that fxpar raises: what is wrong, where, both numbers, and what would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A position in a text file: 1-based line and column, and the line's text for the caret."""

    file: str
    line: int
    column: int = 1
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def caret(self) -> str:
        """Return the source line with a caret under the column, or nothing if the text is unknown."""
        if not self.text:
            return ""
        number = str(self.line)
        return f"\n  {number} | {self.text}\n  {' ' * len(number)} | {' ' * (self.column - 1)}^"


class FxparError(Exception):
    """Base of every error of fxpar. `place` names the file position, `details` are further lines."""

    def __init__(self, what: str, *, place: Place | None = None, details: Sequence[str] = ()) -> None:
        self.what = what
        self.place = place
        self.details = tuple(details)
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.place}: {self.what}{self.place.caret()}" if self.place else self.what
        return "\n".join([head, *(f"  {line}" for line in self.details)])


class PlanError(FxparError):
    """A plan, a mesh or an option that cannot be carried out."""


class RuleError(FxparError):
    """A file of rules that is malformed, or a rule that matches nothing."""


class ModelError(FxparError):
    """A model or its example inputs cannot be found or built."""


class CaptureError(FxparError):
    """A model that cannot be captured as one graph."""


class ShardError(FxparError):
    """A graph that cannot be split as the plan says."""


class MixingError(ShardError):
    """A model that mixes the samples of a batch, and so cannot take them in microbatches."""


class PipelineError(FxparError):
    """A graph that cannot be cut into the stages that the plan asks for."""


class EmitError(FxparError):
    """A module or a folder that cannot be written or no longer fits its model."""


class CheckpointError(FxparError):
    """Weights that cannot be read or written."""


class RankError(FxparError):
    """A rank that failed while the emitted modules ran."""


class Violations(PlanError):
    """Several errors found together; each stands whole in the message."""

    def __init__(self, errors: Sequence[FxparError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


def raise_all(errors: Sequence[FxparError]) -> None:
    """Raise nothing, the one error, or all of them as `Violations`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise Violations(errors)
