"""Compiling a rank: layers of one class are compiled once, with their parameters as inputs, backward too."""

from __future__ import annotations

from pathlib import Path

import pytest
import runtime_workers
from runtime_layers import assert_compiles_alike, decoder

import fxpar


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_inductor_compiles_one_layer() -> None:
    model, batch = decoder()
    rank = fxpar.parallelize(model, fxpar.Plan(), kwargs=batch, device="cpu")
    assert_compiles_alike(rank, batch, "inductor")


@pytest.mark.gloo
def test_layers_with_collectives(tmp_path: Path) -> None:
    runtime_workers.start(runtime_workers.compiled_layers, 2, f"{tmp_path}/store")
