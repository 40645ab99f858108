"""Folders that `fxpar partition` wrote, verified and explained from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from verification_models import NANOGPT

from fxpar.cli import run
from fxpar.runtime.manifest import Manifest
from fxpar.verification.folder import folder_subject

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for four ranks, in float64."""
    folder = tmp_path_factory.mktemp("written") / "out"
    options = ("--tp", "2", "--pp", "2", "--dtype", "float64")
    assert run(["partition", str(NANOGPT), *options, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """A folder that may be changed."""
    return Path(shutil.copytree(written, tmp_path / "out"))


@pytest.fixture
def fxpar(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs a command and returns status, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        return (status, *capsys.readouterr())

    return call


def test_verify_a_folder(written: Path, fxpar: Command) -> None:
    status, out, _ = fxpar("verify", str(written), "--simulate")
    assert (status, out.splitlines()[0]) == (
        0,
        "ok: float64 on 4 ranks (pp 2, tp 2), simulated, tolerance 1e-09",
    )


@pytest.mark.gloo
def test_verify_a_folder_in_processes(written: Path, fxpar: Command) -> None:
    status, out, _ = fxpar("verify", str(written), "--json", "--device", "cpu")
    report = json.loads(out)
    assert (status, report["ok"], report["simulated"]) == (0, True, False)
    assert report["gradient_error"] < 1e-11


def test_whole_weights_are_those_of_the_ranks(written: Path) -> None:
    found = folder_subject(written)
    model = found.model
    assert torch.equal(
        found.weights.read("blocks.0.attention.qkv.weight"), model.blocks[0].attention.qkv.weight
    )
    assert torch.equal(found.weights.read("tokens.weight"), model.tokens.weight)


def test_verify_a_spoilt_folder(copy: Path, fxpar: Command) -> None:
    manifest = Manifest.read(copy)
    name = "blocks.1.norm_1.weight"
    changed = {**manifest.tensors, name: replace(manifest.tensors[name], reduce=())}
    (copy / "manifest.json").write_text(replace(manifest, tensors=changed).to_json())
    status, out, _ = fxpar("verify", str(copy), "--simulate")
    assert status == 1
    assert f"first to differ: {name}, gradient " in out
    assert "rules/splits/default.yaml:5" in out


def test_verify_a_folder_with_a_file_lost(copy: Path, fxpar: Command) -> None:
    (copy / "model-pp1-tp0.safetensors").unlink()
    status, _, err = fxpar("verify", str(copy), "--simulate")
    assert status == 2
    assert "model-pp1-tp0.safetensors" in err


def test_verify_a_folder_with_changed_weights(copy: Path, fxpar: Command) -> None:
    path = copy / "model-pp1-tp0.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    status, _, err = fxpar("verify", str(copy), "--simulate")
    assert status == 2
    assert "model-pp1-tp0.safetensors was changed since it was written" in err


def test_verify_a_folder_of_another_plan(copy: Path, fxpar: Command) -> None:
    plan = copy / "plan.yaml"
    plan.write_text(plan.read_text().replace("1f1b", "gpipe"))
    status, _, err = fxpar("verify", str(copy), "--simulate")
    assert status == 2
    assert f"is not what {NANOGPT} gives now" in err
    assert "partition the model again" in err


def test_a_folder_without_weights(tmp_path: Path, fxpar: Command) -> None:
    out = tmp_path / "out"
    assert fxpar("partition", str(NANOGPT), "--tp", "2", "--no-weights", "-o", str(out))[0] == 0
    status, text, _ = fxpar("verify", str(out), "--simulate")
    assert (status, text.splitlines()[0]) == (0, "ok: float32 on 2 ranks (tp 2), simulated, tolerance 1e-04")


def test_verify_a_model(fxpar: Command) -> None:
    status, out, _ = fxpar("verify", str(NANOGPT), "--tp", "2", "--dtype", "float64", "--simulate", "--json")
    report = json.loads(out)
    assert (status, report["ok"], report["dtype"], report["mesh"]["tp"]) == (0, True, "float64", 2)


def test_used_wrongly(written: Path, fxpar: Command) -> None:
    for arguments, message in (
        ((str(written), "--tp", "4"), "has its own plan and batch"),
        ((str(NANOGPT),), "give a plan for the model, such as --tp 2"),
        ((str(NANOGPT), "--tp", "3", "--simulate"), "tp may be 1, 2 or 4"),
        (("nothing.py", "--tp", "2"), "there is no file `nothing.py`"),
    ):
        status, out, err = fxpar("verify", *arguments)
        assert (status, out) == (2, "")
        assert message in err


def test_explain(written: Path, fxpar: Command) -> None:
    status, out, _ = fxpar("explain", str(written), "blocks.0.attention.qkv.weight")
    assert status == 0
    assert "(cat[(heads depth), (heads depth), (heads depth)], hidden)" in out
    assert "rules/splits/default.yaml:2" in out
    assert "nanogpt.py:45" in out


def test_explain_as_json(written: Path, fxpar: Command) -> None:
    (collective,) = json.loads(fxpar("explain", str(written), "blocks.0.norm_1", "--json")[1])
    assert collective["kind"] == "collective"
    assert (collective["over"], collective["forward"], collective["backward"]) == (
        "tp",
        "all_gather",
        "reduce_scatter",
    )


def test_explain_what_is_not_there(written: Path, fxpar: Command) -> None:
    status, out, err = fxpar("explain", str(written), "blocks.0.attention.qkv.wieght")
    assert (status, out) == (2, "")
    assert err.startswith("nothing is called `blocks.0.attention.qkv.wieght`\n")
    assert "did you mean `blocks.0.attention.qkv.weight`?" in err


MODEL = """\
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, z, scale, a=None):
        return self.down(self.up(z).relu()) * scale + a

example_inputs = {"z": torch.ones(4, 8), "scale": 2, "a": torch.ones(4, 8)}
"""


def test_inputs_keep_their_order_and_what_is_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fxpar: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    assert fxpar("partition", "model.py:Model", "--tp", "2", "--eval", "-o", "out")[0] == 0
    assert fxpar("verify", "out", "--simulate")[0] == 0
    Path("model.py").write_text(MODEL.replace("relu", "tanh"))
    status, _, err = fxpar("verify", "out", "--simulate")
    assert status == 2
    assert "out is not what model.py:Model gives now" in err


def test_files_are_left_as_they_are(written: Path, fxpar: Command) -> None:
    before = load_file(written / "model-pp0-tp0.safetensors")
    fxpar("verify", str(written), "--simulate")
    after = load_file(written / "model-pp0-tp0.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
