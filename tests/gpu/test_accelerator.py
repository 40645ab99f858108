"""What only an accelerator can show; run with `pytest -m gpu`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxpar
from fxpar.capture import capture
from fxpar.passes import split
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import alone

pytestmark = pytest.mark.gpu


@pytest.fixture
def model() -> tuple[torch.nn.Module, dict[str, Any]]:
    path = Path(__file__).parents[2] / "examples" / "nanogpt.py"
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = example
    spec.loader.exec_module(example)
    return example.build(), example.example_inputs()


def test_an_emitted_module_runs_where_its_tensors_are(model: tuple[torch.nn.Module, dict[str, Any]]) -> None:
    net, batch = model
    partition = split(capture(net, (), batch), fxpar.Plan())
    device = torch.accelerator.current_accelerator()
    assert device is not None
    tensors = {name: tensor.detach() for name, tensor in partition.program.tensors.items()}
    groups = alone(partition.mesh)
    rank = assemble(partition.manifest, partition.texts, groups, tensors.__getitem__, device=device)
    loss = rank.step(batch)
    net(**batch)[1].backward()
    assert loss.device.type == device.type
    for name, parameter in rank.named_parameters():
        whole = net.get_parameter(name).grad
        assert whole is not None
        torch.testing.assert_close(parameter.grad.cpu(), whole, rtol=1e-3, atol=1e-5)


def test_ranks_on_accelerators_equal_the_whole_model(model: tuple[torch.nn.Module, dict[str, Any]]) -> None:
    """All accelerators of the machine as tp ranks (a power of two of them), over their own collectives."""
    net, batch = model
    count = torch.accelerator.device_count()
    ranks = max(n for n in (1, 2, 4) if n <= count)
    report = fxpar.verify(net, kwargs=batch, plan=fxpar.Plan(tp=ranks))
    assert report.ok, report.text()


def test_a_partition_is_loaded_onto_an_accelerator(
    model: tuple[torch.nn.Module, dict[str, Any]], tmp_path: Path
) -> None:
    net, batch = model
    fxpar.partition(net, fxpar.Plan(), batch, tmp_path / "out")
    rank = fxpar.load(tmp_path / "out")
    assert {p.device.type for p in rank.parameters()} == {torch.accelerator.current_accelerator().type}


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_a_run_on_an_accelerator_goes_on(
    model: tuple[torch.nn.Module, dict[str, Any]], tmp_path: Path, options: dict[str, Any]
) -> None:
    net, batch = model
    fxpar.partition(net, fxpar.Plan(), batch, tmp_path / "out")
    rank, again = (fxpar.load(tmp_path / "out") for _ in range(2))
    optimizer, other = (torch.optim.AdamW(each.parameters(), lr=0.01, **options) for each in (rank, again))
    rank.step(batch)
    optimizer.step()
    rank.save(tmp_path / "saved", optimizer=optimizer, step=1)
    drawn = torch.rand(3, device=next(rank.parameters()).device)
    assert again.restore(tmp_path / "saved", optimizer=other) == 1
    assert torch.equal(torch.rand(3, device=drawn.device), drawn)
    for mine, theirs in zip(rank.parameters(), again.parameters()):
        assert torch.equal(mine, theirs)
        for key, value in optimizer.state[mine].items():
            assert other.state[theirs][key].device == value.device
            assert torch.equal(other.state[theirs][key], value)
