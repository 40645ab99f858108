"""Verification by real processes: many models in one launch, failures, and what is launched where."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from verification_models import MODELS, subject_of

import fxpar
from fxpar.emit.folder import write
from fxpar.errors import PlanError, RankError
from fxpar.runtime.manifest import Manifest
from fxpar.verification.processes import device_type, verify_all, verify_processes
from fxpar.verification.subject import subject


@pytest.mark.gloo
def test_partitions_are_their_models() -> None:
    plan = fxpar.Plan(tp=2, pp=2)
    made = {name: subject_of(name) for name in MODELS}
    made |= {"bert without a loss": subject_of("bert", loss=False)}
    subjects = [subject(model, (), inputs, plan) for model, inputs in made.values()]
    reports = dict(zip(made, verify_all(subjects)))
    for name, report in reports.items():
        assert report.ok, f"{name}\n{report.text()}"
        assert not report.simulated
        assert report.ranks == 4
        assert report.gradient_error < 1e-11
        assert report.calls("all_gather", group="tp") > 0


@pytest.mark.gloo
def test_a_rank_that_fails_is_named(tmp_path: Path) -> None:
    """A module that was broken by hand: its own hash is made to fit, so that it fails only when it runs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    broken = subject(model, (torch.ones(2, 4),), {}, fxpar.Plan())
    manifest = write(broken.partition, tmp_path / "out", broken.weights)
    path = tmp_path / "out" / "stage_0.py"
    text = re.sub(r"(def forward\(self, (\w+)\):)", r"\1\n        \2.lost()", path.read_text())
    path.write_text(text)
    files = {**manifest.files, path.name: hashlib.sha256(text.encode()).hexdigest()}
    changed: Manifest = replace(manifest, files=files)
    (tmp_path / "out" / "manifest.json").write_text(changed.to_json())
    with pytest.raises(RankError) as error:
        verify_processes(replace(broken, folder=tmp_path / "out"), device="cpu", timeout=30)
    assert str(error.value).startswith("rank 0 failed with status 1\n")
    assert "AttributeError: 'Tensor' object has no attribute 'lost'" in str(error.value)


def test_one_launch_is_for_one_number_of_ranks() -> None:
    example = (torch.ones(2, 4),)
    subjects = [subject(nn.Linear(4, 4), example, {}, fxpar.Plan(dp=size)) for size in (1, 2)]
    with pytest.raises(PlanError, match=r"partitions of \[1, 2\] ranks cannot share their processes"):
        verify_all(subjects)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert device_type(2) == "cuda"
    assert device_type(4) == "cpu"
    assert device_type(2, "cpu") == "cpu"
    with pytest.raises(PlanError, match="4 ranks need 4 devices, and there are 2"):
        device_type(4, "cuda")
    with pytest.raises(PlanError, match="there is no device `xpu` here"):
        device_type(2, "xpu")
