"""Ranks loaded from a folder: the whole model's numbers, from the own files only, none of them tampered with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from fxpar import origin
from fxpar.capture import source
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.local import read as read_parts
from fxpar.checkpoint.weights import TensorWeights
from fxpar.emit.folder import write
from fxpar.errors import CheckpointError, EmitError, FxparError, RankError
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.groups import alone
from fxpar.runtime.load import draw, load
from fxpar.runtime.lockstep import simulate

GPT = str(Path(__file__).parents[2] / "examples" / "nanogpt.py")


@pytest.fixture(scope="module")
def gpt() -> origin.Origin:
    return origin.of_source(source.find(GPT), dtype=torch.float64)


@pytest.fixture
def out(gpt: origin.Origin, tmp_path: Path) -> Path:
    write(split(gpt.program, Plan(tp=2, pp=2)), tmp_path / "out", gpt.weights, example=gpt.example)
    return tmp_path / "out"


def whole(gpt: origin.Origin) -> tuple[float, torch.nn.Module]:
    """The loss of the whole model with the same weights, after its backward pass."""
    model = source.find(GPT).build(real=True, dtype=torch.float64)
    model.load_state_dict({name: gpt.weights.read(name) for name in gpt.weights.names()})
    loss = model(**gpt.example)[1]
    loss.backward()
    return loss.item(), model


def test_ranks_are_the_whole_model(gpt: origin.Origin, out: Path) -> None:
    loss, model = whole(gpt)
    index = Index.read(out)
    gradients = TensorWeights({name: p.grad for name, p in model.named_parameters()})

    def check(number: int, groups) -> None:
        rank = load(out, groups, "cpu")
        assert rank.step(gpt.example).item() == pytest.approx(loss, rel=1e-12)
        for name, parameter in rank.named_parameters():
            parts = index.parts_of(number, name)
            wanted = read_parts(gradients, name, parts, torch.float64)
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-12)

    simulate(Plan(tp=2, pp=2).mesh, check)


def test_one_rank_needs_no_groups(gpt: origin.Origin, tmp_path: Path) -> None:
    write(split(gpt.program, Plan()), tmp_path / "out", gpt.weights)
    rank = load(tmp_path / "out", device="cpu")
    assert rank.step(gpt.example).item() == pytest.approx(whole(gpt)[0], rel=1e-12)
    assert set(rank.state_dict()) == set(source.find(GPT).build().state_dict())


def test_several_ranks_need_processes(out: Path) -> None:
    with pytest.raises(RankError, match="there is no process group yet"):
        load(out, device="cpu")


def test_only_the_own_files_are_read(gpt: origin.Origin, tmp_path: Path) -> None:
    write(split(gpt.program, Plan(tp=2)), tmp_path / "out", gpt.weights)
    (tmp_path / "out" / "model-pp0-tp1.safetensors").unlink()
    load(tmp_path / "out", alone(Plan(tp=2).mesh), "cpu")


def test_without_weights_every_layout_draws_the_same(gpt: origin.Origin, tmp_path: Path) -> None:
    plans = {"a": Plan(seed=3), "b": Plan(tp=2, pp=2, seed=3), "c": Plan(tp=4, seed=3)}
    losses = [loss for name, plan in plans.items() for loss in drawn(gpt, plan, tmp_path / name)]
    assert losses == pytest.approx([losses[0]] * 9, rel=1e-12)
    assert not torch.equal(draw("a", (4,), 0), draw("b", (4,), 0))
    assert not torch.equal(draw("a", (4,), 0), draw("a", (4,), 1))


def drawn(gpt: origin.Origin, plan: Plan, folder: Path) -> list[float]:
    """The loss on every rank of a folder without weights."""
    made = split(gpt.program, plan)
    write(made, folder, None)
    return simulate(made.mesh, lambda _, groups: load(folder, groups, "cpu").step(gpt.example).item())


def edited(path: Path, old: str, new: str) -> None:
    """Change a text once."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refused(out: Path, kind: type[FxparError], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        load(out, alone(Plan(tp=2, pp=2).mesh), "cpu")


@pytest.mark.parametrize("name", ["stage_0.py", "prepare.py"])
def test_a_changed_module_is_refused(out: Path, name: str) -> None:
    edited(out / name, "return", "pass; return")
    refused(out, EmitError, f"{name} is not what `fxpar partition` wrote\n  it was changed, or comes from")


def test_a_changed_layout_is_refused(gpt: origin.Origin, tmp_path: Path) -> None:
    write(split(gpt.program, Plan(tp=2, pp=2)), tmp_path / "out", None)
    edited(tmp_path / "out" / "fxpar.layout.json", '"vocab"', '"ffn"')
    refused(tmp_path / "out", EmitError, "fxpar.layout.json is not what `fxpar partition` wrote")


def test_a_missing_module_is_named(out: Path) -> None:
    (out / "stage_0.py").unlink()
    refused(out, EmitError, "stage_0.py cannot be read: No such file")


def test_a_missing_file_is_named(out: Path) -> None:
    (out / "model-pp0-tp0.safetensors").unlink()
    refused(out, EmitError, f"{out} lacks files of rank 0\n  model-pp0-tp0.safetensors")


def test_a_damaged_file_is_named(out: Path) -> None:
    path = out / "model-pp0-tp0.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(out, CheckpointError, "model-pp0-tp0.safetensors")


def test_a_file_of_another_shape_is_refused(out: Path) -> None:
    edited(out / "manifest.json", "model-pp0-tp0.safetensors", "model-pp1-tp0.safetensors")
    refused(out, CheckpointError, "there are no weights for")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "link.safetensors"])
def test_names_that_lead_out_are_refused(out: Path, name: str) -> None:
    (out.parent / "secret.safetensors").write_bytes(b"")
    (out / "link.safetensors").symlink_to(out.parent / "secret.safetensors")
    data = json.loads((out / "manifest.json").read_text())
    data["ranks"][0] = [name]
    (out / "manifest.json").write_text(json.dumps(data))
    refused(out, EmitError, f"manifest.json names `{name}`, which is no file of")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(EmitError, match=r"was not written by `fxpar partition`: it has no manifest\.json"):
        load(tmp_path)
