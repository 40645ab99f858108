"""The same conversions between real processes."""

from __future__ import annotations

import pytest
import runtime_workers

from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.processes import connect


@pytest.mark.gloo
def test_two_processes(tmp_path):
    runtime_workers.start(runtime_workers.everything, 2, f"{tmp_path}/store")


def test_a_process_group_must_exist():
    with pytest.raises(RankError, match="there is no process group yet"):
        connect(Mesh({"tp": 2}), ["tp"])
