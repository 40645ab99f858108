"""One model of the zoo under every plan: captured or not, its axes, what is split, and how exact each plan is."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx, nn

from fxpar.again import precision
from fxpar.axes.factor import leaves
from fxpar.capture import capture
from fxpar.capture.program import Program
from fxpar.errors import FxparError
from fxpar.parts import ModelWeights
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.shard.placement import Shard
from fxpar.verification.simulated import verify_simulated
from fxpar.verification.subject import Subject
from models.entries import Entry

#: The columns of the table: a plan each.
PLANS = {
    "tp 2": Plan(tp=2, sequence_parallel=False),
    "tp 4": Plan(tp=4, sequence_parallel=False),
    "tp 2, sp": Plan(tp=2),
    "pp 2": Plan(pp=2),
    "tp 2, pp 2": Plan(tp=2, pp=2),
    "cp 2": Plan(cp=2),
}

#: The plan that is tried with dropout as well.
DROPOUT_PLAN = Plan(tp=2, pp=2)
DROPOUT = 0.1

#: The entry of a model that draws no random numbers.
NONE = "none"

#: How often a conversion talks to other ranks, forward and backward.
_TIMES = {
    "sum_gradient": 1,
    "all_reduce": 1,
    "all_reduce_both": 2,
    "all_gather": 2,
    "reduce_scatter": 2,
    "slice": 1,
    "all_to_all": 2,
    "keep_on_first": 0,
}
_LAYER = re.compile(r"(?:^|\.)\d+(?=\.|$)")


@dataclass
class Trial:
    """What came of one model. An empty error is exact; other texts are the first lines of what was said."""

    label: str
    dtype: str
    axes: tuple[str, ...] = ()
    split: float = 0.0
    """The share of the bytes of all matrices that is split at tp 2."""
    large: float = 0.0
    small: float = 0.0
    """Collectives of whole activations in a layer at tp 2, forward and backward, and those of less."""
    errors: dict[str, float | str] = field(default_factory=dict)
    """By column the worst relative error, or what was said."""
    refused: str = ""
    """Why it was not captured."""
    seconds: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether every column is exact."""
        limit = 1e-9 if self.dtype == "float64" else 1e-4
        return all(isinstance(e, float) and e <= limit for e in self.errors.values() if e != NONE)


def run(entry: Entry, columns: Sequence[str] = tuple(PLANS), *, dropout: bool = True) -> Trial:
    """Try one model under the plans of some columns, and under one of them with dropout."""
    start = time.perf_counter()
    trial = Trial(entry.label, str(entry.dtype).removeprefix("torch."))
    with _quiet():
        try:
            taken = _taken(entry)
            _describe(trial, taken)
        except ModuleNotFoundError as error:
            trial.refused = f"{error.name} is not installed: `make zoo` installs what the zoo needs"
        except FxparError as error:
            trial.refused = str(error)
        else:
            for column in columns:
                trial.errors[column] = _error(taken, PLANS[column])
            if dropout:
                _with_dropout(trial, entry)
    trial.seconds = time.perf_counter() - start
    return trial


@dataclass
class _Taken:
    """A model with its batch, and what was captured of it."""

    model: nn.Module
    batch: Mapping[str, Any]
    program: Program
    exact: bool


def _taken(entry: Entry, dropout: float = 0.0) -> _Taken:
    model, batch = entry.build(dropout)
    exact = entry.dtype == torch.float64
    with precision(exact):
        return _Taken(model, batch, capture(model, (), batch), exact)


def _describe(trial: Trial, taken: _Taken) -> None:
    partition = split(taken.program, PLANS["tp 2"])
    trial.axes = _axes(partition)
    trial.split = _split_share(partition, taken.program)
    trial.large, trial.small = _collectives(partition.sharded.graph)


def _with_dropout(trial: Trial, entry: Entry) -> None:
    """Under one plan with dropout, if the model has any."""
    try:
        taken = _taken(entry, DROPOUT)
        drawn = any(torch.Tag.nondeterministic_seeded in _tags(node) for node in taken.program.graph.nodes)
        trial.errors["dropout"] = _error(taken, DROPOUT_PLAN) if drawn else NONE
    except FxparError as error:
        trial.errors["dropout"] = str(error)


def _tags(node: fx.Node) -> Sequence[torch.Tag]:
    return getattr(node.target, "tags", ())


def _error(taken: _Taken, plan: Plan) -> float | str:
    try:
        partition = split(taken.program, plan)
        weights = ModelWeights(taken.program, None)
        subject = Subject(partition, taken.model, (), taken.batch, weights, exact=taken.exact)
        report = verify_simulated(subject)
    except FxparError as error:
        return str(error)
    return max(
        report.loss_error,
        report.norm_error,
        report.gradient_error,
        report.parameter_error,
        report.output_error,
    )


def _axes(partition: Partition) -> tuple[str, ...]:
    """The names of all axes that the model's values and parameters have."""
    naming, found = partition.sharded.naming, partition.sharded.found
    dims = (dim for outputs in found.dims.values() for tensor in outputs for dim in tensor)
    named = {naming.axis(factor) for dim in dims for factor in leaves(dim)}
    return tuple(sorted(name for name in named if name))


def _split_share(partition: Partition, program: Program) -> float:
    """Of the bytes of the parameters with two dims or more that linear ops and lookups use, those that are split."""
    whole = apart = 0
    for name, laid in partition.sharded.tensors.items():
        node = program.placeholder(name)
        if node.meta["kind"] != "parameter" or len(laid.shape) < 2 or _is_convolved(node):
            continue
        size = prod(laid.shape)
        whole += size
        apart += size if any(isinstance(state, Shard) for state in laid.held.values()) else 0
    return apart / whole if whole else 0.0


def _is_convolved(node: fx.Node) -> bool:
    """Whether a convolution uses a parameter, as it is or normalised."""
    return any(
        "conv" in str(user.target) or ("weight_norm" in str(user.target) and _is_convolved(user))
        for user in node.users
    )


def _collectives(graph: fx.Graph) -> tuple[float, float]:
    """Of the layer with the most: conversions of the usual size or more, and smaller ones."""
    found = [
        node
        for node in graph.nodes
        if _kind(node) in _TIMES and isinstance(node.meta.get("val"), torch.Tensor)
    ]
    layers = [(_LAYER.search(node.meta.get("module") or ""), node) for node in found]
    inside = [(match.string[: match.end()], node) for match, node in layers if match]
    if not inside:
        return 0, 0
    usual = Counter(_size(node) for _, node in inside).most_common(1)[0][0]
    large, small = Counter[str](), Counter[str]()
    for layer, node in inside:
        (large if 2 * _size(node) > usual else small)[layer] += _TIMES[_kind(node)]
    most = max(large, key=lambda layer: large[layer])
    return large[most], small[most]


def _kind(node: fx.Node) -> str:
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "fxpar" and len(parts) > 1 else ""


def _size(node: fx.Node) -> int:
    sizes: list[int] = [prod(n.meta["val"].shape) for n in (node, *node.all_input_nodes)]
    return max(sizes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what models say about themselves away from the table."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
