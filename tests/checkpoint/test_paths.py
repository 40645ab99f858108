"""Names that come from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fxpar.checkpoint import paths


@pytest.mark.parametrize("name", ["", ".", "..", "../file", "/file", "a/file", "a\\file", "a\0", 3, None])
def test_names_that_are_none(tmp_path: Path, name: Any) -> None:
    assert paths.fault(tmp_path, name) == "is not a plain file name"


def test_files_and_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("")
    (root / "folder").mkdir()
    (tmp_path / "outside").write_text("")
    (root / "inside").symlink_to("file")
    (root / "out").symlink_to("../outside")
    (root / "nowhere").symlink_to("absent")
    assert {
        name: paths.fault(root, name) for name in ("file", "inside", "folder", "out", "nowhere", "absent")
    } == {
        "file": "",
        "inside": "",
        "folder": "is no file",
        "out": "is a link that leads out of the folder",
        "nowhere": "is a link to nothing",
        "absent": "is missing",
    }


def test_links_of_hugging_faces_cache(tmp_path: Path) -> None:
    root, blobs = tmp_path / "models--x" / "snapshots" / "4567", tmp_path / "models--x" / "blobs"
    root.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").write_text("")
    (tmp_path / "outside").write_text("")
    (root / "file").symlink_to("../../blobs/0123")
    (root / "out").symlink_to("../../../outside")
    assert paths.fault(root, "file") == ""
    assert paths.fault(root, "out") == "is a link that leads out of the folder"
