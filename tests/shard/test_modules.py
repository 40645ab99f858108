"""Unusual modules over several meshes: exact in every output and gradient, or refused with a clear error."""

from __future__ import annotations

from functools import cache

import pytest
from shard_case import Case, rows
from shard_modules import LOSSES, MODULES, build

from fxpar.errors import CaptureError, ShardError

EXACT = 1e-9
#: In turn, so that every module meets tp with a sequence that is split, and one other mesh.
OTHERS = ["cp4", "dp2 tp2", "dp4", "cp2 tp2"]


@cache
def case(name: str) -> Case:
    """A module of the tables, captured."""
    return Case(*build(name))


@pytest.mark.parametrize("name", [*MODULES, *LOSSES])
def test_exact(name: str) -> None:
    other = OTHERS[[*MODULES, *LOSSES].index(name) % len(OTHERS)]
    for mesh in ("tp2", "dp2 cp2 tp2", other):
        run = case(name).check(mesh)
        assert run.error < EXACT, f"{mesh}: {run}"


@pytest.mark.parametrize(
    "name", ["attention as einsum", "attention as bmm", "linear attention", "fused by heads"]
)
def test_without_sequence_parallelism(name: str) -> None:
    run = case(name).check("tp4", "whole_sequence")
    assert run.error < EXACT, str(run)
    assert run.sharded.fraction > 0.9


TABLES = {
    "hidden: tp": "tp2",
    "hidden: tp\nffn: tp\nvocab: tp": "tp2",
    "heads: [cp, tp]\nffn: [tp, cp]\nvocab: [tp, cp]\nsequence: ['tp?']": "cp2 tp2",
    "batch: dp\nhidden: cp\nheads: tp\nffn: tp\nvocab: tp\npositions: cp": "dp2 cp2 tp2",
    "sequence: [tp, cp]": "cp2 tp2",
    "depth: tp\nvocab: tp": "tp2",
    "batch: [dp, ep]\nheads: ep": "dp2 ep2",
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "name", ["attention as einsum", "fused as five dims", "tied", "experts that are all run"]
)
def test_other_tables(name: str, table: str) -> None:
    run = case(name).check(TABLES[table], rows(table.replace("'", '"')))
    assert run.error < EXACT, str(run)


def test_the_objective_sees_what_is_wrong() -> None:
    """A gradient that is not summed, and an output of another rank, are found."""
    subject = case("tied")
    sharded = subject.shard("tp2")
    name = next(name for name, laid in sharded.tensors.items() if laid.reduce)
    object.__setattr__(sharded.tensors[name], "reduce", ())
    assert subject.run(sharded).worst[name] > 1e-3


@pytest.mark.parametrize(
    ("name", "mesh", "error", "message"),
    [
        ("rows that are counted by data", "dp2", CaptureError, "index.Tensor.*size depends on data"),
        ("gradients scaled by frequency", "tp2", ShardError, "scale_grad_by_freq=True.*split over tp"),
        ("gradients scaled by frequency", "dp2", ShardError, "scale_grad_by_freq=True.*split over dp"),
        ("sparse gradients", "tp2", ShardError, "sparse=True.*split over tp"),
    ],
)
def test_refused(name: str, mesh: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        case(name).shard(mesh)


@pytest.mark.parametrize("mesh", ["tp2", "tp4", "dp2 tp2"])
def test_batch_norm_in_training(mesh: str) -> None:
    """Its statistics are those of the whole batch, and each rank keeps those of its channels."""
    run = case("batch norm").check(mesh)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["norm.running_mean"].split_over == ("tp",)
    assert run.worst["norm.running_mean"] < EXACT


def test_batch_norm_over_data_ranks() -> None:
    run = case("batch norm").check("dp4")
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["norm.running_mean"].split_over == ()


def test_an_op_without_a_rule_that_takes_one_tensor_twice() -> None:
    run = case("one tensor twice").check("cp2 tp2")
    assert run.error < EXACT, str(run)
    assert "aten.tensordot.default" in run.sharded.found.unknown
