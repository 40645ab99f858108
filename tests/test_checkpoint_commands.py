"""The commands on checkpoints: what they say, and their exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxpar
from fxpar.cli import run

ROOT = Path(__file__).parents[1]


class Model(nn.Module):
    """Tied embeddings and a block of the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(48, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 48, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = x + self.down(self.up(self.norm(x)).relu())
        logits: torch.Tensor = self.head(x)
        return logits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a partition for two ranks; commands run beside it."""
    torch.manual_seed(0)
    fxpar.partition(Model(), fxpar.Plan(tp=2), {"ids": torch.zeros(2, 4).long()}, tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    return tmp_path


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command; give its status, stdout and stderr."""
    assert folder.is_dir()

    def one(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        return (status, *capsys.readouterr())

    return one


def test_there_and_back(call: Call) -> None:
    status, out, err = call("reshard", "two", "four", "--tp", "4", "--dry-run")
    assert (status, err) == (0, "")
    assert out == "7 tensors in 4 files: 2.8 kB would be read, 19.4 kB would be written\n"
    assert not Path("four").exists()
    status, out, err = call("reshard", "two", "four", "--tp", "4", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {"tensors": 7, "files": 4, "read": 2816, "written": 19392, "resumed": 0}
    assert call("reshard", "four", "hf", "--to", "hf")[0] == 0
    assert call("diff", "two", "four")[:2] == (0, "7 tensors, 2.7 kB: the same\n")
    assert call("diff", "four", "hf")[:2] == (0, "7 tensors, 2.7 kB: the same\n")
    assert call("reshard", "hf", "back", "--like", "two")[0] == 0
    for path in Path("two").glob("model-*.safetensors"):
        mine, theirs = load_file(path), load_file(Path("back") / path.name)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_plan(call: Call) -> None:
    Path("plan.yaml").write_text("tp: 4\nsplits:\n  vocab: null\n")
    assert call("reshard", "two", "four", "--plan", "plan.yaml")[0] == 0
    found = json.loads(call("inspect", "four", "--json")[1])
    assert found["mesh"] == {"tp": 4}
    assert found["tensors"]["table.weight"]["placement"] == {}
    assert found["tensors"]["up.weight"]["placement"] == {"tp": "Shard(0, ffn)"}


def test_what_a_checkpoint_holds(call: Call) -> None:
    status, out, _ = call("inspect", "two", "up.*")
    assert status == 0
    assert out.splitlines() == [
        "fxpar layout, tp 2, 2.7 kB of tensors",
        "",
        "model-pp0-tp0.safetensors  1.4 kB",
        "model-pp0-tp1.safetensors  1.4 kB",
        "",
        "up.weight  F32[16, 8]  ffn=16, hidden=8  Shard(0, ffn) over tp  2 files",
        "up.bias    F32[16]     ffn=16            Shard(0, ffn) over tp  2 files",
        "head.weight is table.weight",
    ]
    assert call("inspect", "two", "upp.weight")[2] == (
        "two has no tensor `upp.weight`\n  did you mean `up.weight`?\n"
    )


def test_a_damaged_byte(call: Call) -> None:
    assert call("reshard", "two", "one", "--tp", "1")[0] == 0
    status, out, _ = call("verify-checkpoint", "one")
    assert (status, out) == (0, "7 tensors, 2.7 kB, 7 of 7 parts have checksums: all right\n")
    path = Path("one/model-pp0.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    status, out, _ = call("verify-checkpoint", "one")
    assert status == 1
    lines = out.splitlines()
    assert lines[0].startswith("model-pp0.safetensors: `up.weight` has the crc32 ")
    assert lines[1] == "7 tensors, 2.7 kB, 7 of 7 parts have checksums: 1 wrong"
    status, out, _ = call("diff", "two", "one", "--json")
    assert status == 1
    assert json.loads(out)["wrong"]
    status, _, err = call("reshard", "one", "never", "--to", "hf")
    assert status == 2
    assert "`up.weight` has the crc32" in err
    assert not Path("never").exists()


def test_checkpoints_of_different_tensors(call: Call) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}, "x.safetensors")
    save_file(
        {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.zeros(3), "d": torch.zeros(1)}, "y.safetensors"
    )
    status, out, _ = call("diff", "x.safetensors", "y.safetensors")
    assert status == 1
    assert out.splitlines() == [
        "`d` is only in y.safetensors",
        "`c` is F32 [2] and F32 [3]",
        "y.safetensors: `b` differs at [0] from x.safetensors, and should be the same",
        "2 tensors, 16 B: 3 differ",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no layout is asked for\n  --tp 4 --pp 1, --plan FILE, --like DIR or --to hf\n"),
        (["--tp", "0"], "sizes are at least 1: tp = 0\n"),
        (["--vpp", "0"], "sizes are at least 1: vpp = 0\n"),
        (
            ["--to", "hf", "--tp", "2"],
            "Hugging Face's layout has no mesh\n  leave out --to hf, or the mesh\n",
        ),
        (
            ["--tp", "3"],
            "the checkpoint cannot be split so\n"
            "  `up.weight` and 2 more: ffn = 16 does not divide over tp = 3: tp may be 1, 2, 4, 8 or 16\n",
        ),
        (["--pp", "9"], "9 stages need as many layers, the checkpoint has 1\n  pp may be 1\n"),
        (
            ["--vpp", "2"],
            "vpp = 2 stages a rank need several ranks along pp\n  --pp 2, or leave vpp at 1\n",
        ),
        (["--tp", "2", "--like", "."], ". has no fxpar.index.json and no fxpar.layout.json\n"),
    ],
)
def test_what_cannot_be_asked_for(call: Call, arguments: list[str], message: str) -> None:
    status, out, err = call("reshard", "two", "other", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert not Path("other").exists()


def test_a_number_of_stages_that_the_plan_does_not_run(call: Call) -> None:
    Path("plan.yaml").write_text("pp: 2\nvpp: 2\nschedule: zb-v\n")
    status, out, err = call("reshard", "two", "other", "--plan", "plan.yaml", "--vpp", "1")
    assert (status, out) == (2, "")
    assert err == ("schedule zb-v of the plan wants 2 stages a rank, and vpp is 1\n  vpp = 2 would do\n")


def test_a_checkpoint_of_unknown_axes(call: Call) -> None:
    save_file({"a": torch.zeros(4)}, "x.safetensors")
    status, _, err = call("reshard", "x.safetensors", "other", "--tp", "2")
    assert status == 2
    assert err == (
        "nothing is known of the axes and layers of its tensors: it was not written by fxpar\n"
        "  --like DIR: a folder that `fxpar partition MODEL --no-weights -o DIR` wrote for its model\n"
    )
    status, _, err = call("reshard", "x.safetensors", "other", "--to", "hf", "--max-shard-size", "5 apples")
    assert "`5 apples` is no size such as 5GB" in err


def test_a_folder_that_is_there(call: Call) -> None:
    assert call("reshard", "two", "other", "--tp", "4")[0] == 0
    status, _, err = call("reshard", "two", "other", "--tp", "2")
    assert status == 2
    assert "other exists already" in err
    assert call("reshard", "two", "other", "--tp", "2", "--force")[0] == 0
    assert json.loads(call("inspect", "other", "--json")[1])["mesh"] == {"tp": 2}


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "safetensors", "click", "yaml", "transformers", "networkx"):
            raise ImportError(name + " is not there")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_numpy_alone_is_enough(folder: Path) -> None:
    """The tool of a checkout, where nothing else is installed."""
    tool = str(ROOT / "tools" / "reshard.py")

    def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", NO_TORCH, tool, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)

    done = run_tool("two", "four", "--tp", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 4
    done = run_tool("two", "four", "--tp", "4")
    assert done.returncode == 2
    assert "four exists already" in done.stderr
    done = run_tool("two", "other", "--plan", "two/plan.yaml")
    assert done.returncode == 2
    said = "a plan cannot be read: yaml is not there\n  install pyyaml, or give the sizes: --tp 4 --pp 1\n"
    assert done.stderr == said
    assert run(["diff", "two", "four"]) == 0


def test_commands_on_checkpoints_start_without_torch(folder: Path) -> None:
    code = """
import sys
from fxpar.cli import run
for words in ("reshard two four --tp 4", "inspect two", "verify-checkpoint two", "diff two four"):
    assert run(words.split()) == 0
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
