"""run.py under torchrun: real processes train like the whole model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpar import origin
from fxpar.capture import source
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.local import read as read_parts
from fxpar.checkpoint.weights import FileWeights, TensorWeights
from fxpar.emit.folder import write
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.train import main

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
GPT = str(ROOT / "examples" / "nanogpt.py")
#: All ranks have to end by themselves long before this.
GUARD = 90


@pytest.fixture(scope="module")
def gpt() -> origin.Origin:
    return origin.of_source(source.find(GPT), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(gpt: origin.Origin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with partitions for four ranks, for two and for one."""
    place = tmp_path_factory.mktemp("train")
    for name, plan in {"four": Plan(tp=2, pp=2), "two": Plan(pp=2), "one": Plan()}.items():
        write(split(gpt.program, plan), place / name, gpt.weights, example=gpt.example)
    return place


def launch(script: Path, *arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, str(script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=GUARD, env=environment, check=False
    )


def read(stdout: str) -> list[dict[str, float]]:
    """What was printed as JSON, by one rank only."""
    return [json.loads(line) for line in stdout.splitlines()]


def trained(gpt: origin.Origin, steps: int) -> tuple[list[dict[str, float]], torch.nn.Module]:
    """The same steps of the whole model."""
    model = source.find(GPT).build(real=True, dtype=torch.float64)
    model.load_state_dict({name: gpt.weights.read(name) for name in gpt.weights.names()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    said = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(**gpt.example)[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        said.append({"step": step + 1, "loss": loss.item(), "gradient_norm": norm.item()})
    return said, model


@pytest.mark.gloo
def test_four_processes_train_like_the_whole_model(gpt: origin.Origin, folder: Path, tmp_path: Path) -> None:
    wanted, model = trained(gpt, 2)
    options = ["--steps", "2", "--lr", "0.01", "--clip", "0.5", "--device", "cpu", "--json"]
    saving = [*options, "--save", str(tmp_path / "saved")]
    done = launch(folder / "four" / "run.py", *saving, processes=4)
    assert done.returncode == 0, done.stderr
    assert read(done.stdout) == [pytest.approx(each, rel=1e-9) for each in wanted]
    index = Index.read(tmp_path / "saved")
    state = TensorWeights(model.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    for name, tensor in index.tensors.items():
        for file, parts in tensor.files.items() if not tensor.of else ():
            saved = FileWeights.of(tmp_path / "saved" / file).read(name)
            whole = read_parts(state, name, parts, torch.float64)
            torch.testing.assert_close(saved, whole, rtol=1e-8, atol=1e-9)


def test_one_process_needs_no_launcher(
    gpt: origin.Origin, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {name: tensor.numpy() for name, tensor in gpt.example.items()}
    np.savez(tmp_path / "batch.npz", **arrays)
    options = ["--steps", "2", "--lr", "0.01", "--clip", "0.5", "--device", "cpu", "--json"]
    main(folder / "one", [*options, "--batch", f"{tmp_path}/batch.npz"])
    assert read(capsys.readouterr().out) == [pytest.approx(each, rel=1e-9) for each in trained(gpt, 2)[0]]


@pytest.mark.gloo
def test_a_stopped_run_goes_on_at_another_mesh(gpt: origin.Origin, folder: Path, tmp_path: Path) -> None:
    """Four processes, then two: the steps of one run; batches are taken in turn from where it stopped."""
    wanted, _ = trained(gpt, 5)
    options = ["--clip", "0.5", "--device", "cpu", "--json"]
    first = ["--steps", "3", "--lr", "0.01", "--save", str(tmp_path / "runs"), "--save-every", "2"]
    done = launch(folder / "four" / "run.py", *options, *first, processes=4)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["step-00002", "step-00003"]
    second = ["--steps", "2", "--load", str(tmp_path / "runs" / "step-00003")]
    again = launch(folder / "two" / "run.py", *options, *second, processes=2)
    assert again.returncode == 0, again.stderr
    assert read(done.stdout) + read(again.stdout) == [pytest.approx(each, rel=1e-9) for each in wanted]


def test_one_process_goes_on(gpt: origin.Origin, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """From every step that was saved; with another learning rate, if one is given; or with the weights alone."""
    options = ["--clip", "0.5", "--device", "cpu", "--json"]
    wanted, _ = trained(gpt, 4)
    runs = tmp_path / "runs"
    main(folder / "one", [*options, "--steps", "2", "--lr", "0.01", "--save", str(runs), "--save-every", "1"])
    main(folder / "one", [*options, "--steps", "2", "--load", f"{runs}/step-00002"])
    assert read(capsys.readouterr().out) == [pytest.approx(each, rel=1e-9) for each in wanted]
    main(folder / "one", [*options, "--steps", "2", "--load", f"{runs}/step-00002", "--lr", "0.5"])
    third, fourth = read(capsys.readouterr().out)
    assert third == pytest.approx(wanted[2], rel=1e-9)
    assert fourth["loss"] != pytest.approx(wanted[3]["loss"], rel=1e-3)
    main(folder / "one", [*options, "--evaluate", "--load", f"{runs}/step-00002"])
    assert read(capsys.readouterr().out)[0]["loss"] == pytest.approx(wanted[2]["loss"], rel=1e-9)
    main(folder / "one", [*options, "--steps", "1", "--load", str(folder / "four")])
    assert read(capsys.readouterr().out) == [pytest.approx(wanted[0], rel=1e-9)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--save-every", "2"], "--save-every needs a folder\n  --save DIR\n"),
        (["--evaluate", "--save", "x"], "--evaluate trains nothing to --save\n"),
        (["--load", "nowhere"], "there is no nowhere\n"),
    ],
)
def test_options_that_go_together(
    folder: Path,
    arguments: list[str],
    said: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(folder / "one", ["--device", "cpu", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"rank 0 (stage 0): {said}"
    assert list(tmp_path.iterdir()) == []


def test_layers_are_compiled_on_demand(
    gpt: origin.Origin, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compiled.append(layer))
    options = ["--steps", "1", "--lr", "0.01", "--clip", "0.5", "--device", "cpu", "--json"]
    main(folder / "one", [*options, "--compile"])
    assert len({type(layer) for layer in compiled}) == 1
    assert len(compiled) == 2
    assert read(capsys.readouterr().out) == [pytest.approx(each, rel=1e-9) for each in trained(gpt, 1)[0]]


def test_evaluation_is_forward_only(
    gpt: origin.Origin, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(folder / "one", ["--evaluate", "--device", "cpu", "--json"])
    loss = trained(gpt, 1)[0][0]["loss"]
    assert read(capsys.readouterr().out) == [{"batch": 1, "loss": pytest.approx(loss, rel=1e-12)}]


def test_what_is_said_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(folder / "one", ["--steps", "1", "--device", "cpu"])
    assert re.fullmatch(r"step 1  loss 6\.\d{6}  gradient norm \d\.\d{6}\n", capsys.readouterr().out)


def test_help_shows_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(folder / "one", ["--help"])
    assert "torchrun --nproc-per-node 4 out/run.py --evaluate --json" in capsys.readouterr().out


def test_without_a_loss_there_is_nothing_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = origin.of_module(torch.nn.Linear(3, 2), {"input": torch.ones(4, 3)})
    write(split(found.program, Plan()), tmp_path / "out", found.weights, example=found.example)
    with pytest.raises(SystemExit):
        main(tmp_path / "out", ["--device", "cpu"])
    said = "rank 0 (stage 0): the model has no loss to train on\n  --evaluate runs it forward\n"
    assert capsys.readouterr().err == said
    main(tmp_path / "out", ["--device", "cpu", "--evaluate"])
    assert capsys.readouterr().out == "batch 1  outputs 0 float32[4, 2]\n"


@pytest.mark.gloo
def test_another_number_of_processes_is_refused(folder: Path) -> None:
    done = launch(folder / "four" / "run.py", processes=2)
    assert done.returncode == 1
    what = "this partition is for 4 ranks (pp 2 x tp 2), but 2 processes run\n"
    assert done.stderr.count(f"{what}  torchrun --nproc-per-node 4 four/run.py") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "rank 0: this partition is for 4 ranks (pp 2 x tp 2), but 1 process runs\n"),
        (["--lerning-rate", "1"], "rank 0: No such option"),
        (["--timeout", "soon"], "rank 0: Invalid value for '--timeout'"),
    ],
    ids=["alone", "option", "value"],
)
def test_wrong_use_is_said(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(folder / "four", arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_what_is_there_is_not_saved_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(folder / "one", ["--device", "cpu", "--save", str(folder / "four")])
    assert "four exists already\n  name another folder\n" in capsys.readouterr().err
