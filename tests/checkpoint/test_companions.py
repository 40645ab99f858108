"""What travels along with a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fxpar.checkpoint import companions


def made(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_text(name)


def test_weights_and_indexes_stay(tmp_path: Path) -> None:
    made(tmp_path, "config.json", "tokenizer.model", "modeling.py", "training.json", "README.md")
    made(tmp_path, "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", ".gitattributes")
    made(tmp_path, "pytorch_model.bin.index.json", "fxpar.index.json")
    (tmp_path / "original").mkdir()
    wanted = ("README.md", "config.json", "modeling.py", "tokenizer.model", "training.json")
    assert companions.names(tmp_path) == (wanted, [])
    assert companions.size(tmp_path, wanted) == sum(map(len, wanted))


def test_the_modules_of_a_partition_stay(tmp_path: Path) -> None:
    made(tmp_path, "config.json", "modeling.py", "run.py", "stage_0.py", "plan.yaml")
    files = dict.fromkeys(("config.json", "run.py", "stage_0.py", "plan.yaml"), "0")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    assert companions.names(tmp_path) == (("config.json", "modeling.py"), [])


def test_links_that_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    made(tmp_path, "secret")
    (root / "config.json").symlink_to("../secret")
    assert companions.names(root)[1] == ["config.json is a link that leads out of the folder"]


def test_copies(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "target"
    root.mkdir()
    target.mkdir()
    made(root, "config.json")
    made(target, "config.json")
    os.utime(root / "config.json", ns=(1, 2))
    companions.copy(root, ["config.json"], target)
    assert (target / "config.json").read_text() == "config.json"
    assert companions.stamps(root, ["config.json"]) == [("config.json", 11, 2)]
