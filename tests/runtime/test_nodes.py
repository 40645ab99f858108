"""torchrun on two machines, which are two network namespaces here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_runs import Ended, ended, no_child_remains, script, start, torchrun

from fxpar import origin
from fxpar.capture import source
from fxpar.emit.folder import write
from fxpar.passes import split
from fxpar.plan import Plan

GPT = str(Path(__file__).parents[2] / "examples" / "nanogpt.py")
NAMES = [f"fxpar{os.getpid()}-{number}" for number in range(2)]
LINKS = [f"fx{os.getpid() % 100000}-{number}" for number in range(2)]
ADDRESSES = ["10.199.7.1", "10.199.7.2"]

pytestmark = pytest.mark.gloo


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    """Two network namespaces with a link between them; skips where this machine does not allow them."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` to make network namespaces with")
    try:
        ip("netns", "add", NAMES[0])
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
    try:
        ip("netns", "add", NAMES[1])
        ip("link", "add", LINKS[0], "netns", NAMES[0], "type", "veth", "peer", LINKS[1], "netns", NAMES[1])
        for name, link, address in zip(NAMES, LINKS, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nodes") / "out"
    gpt = origin.of_source(source.find(GPT), dtype=torch.float64)
    write(split(gpt.program, Plan(pp=2, microbatches=2)), place, gpt.weights, example=gpt.example)
    return place


def run(nodes: list[str], folder: Path, fault: str) -> Ended:
    """One rank on each node; the fault is in that of the second."""
    started = []
    for number, (name, link) in enumerate(zip(nodes, LINKS)):
        world = ["--nnodes", "2", "--node-rank", str(number), "--master-addr", ADDRESSES[0]]
        launch = torchrun(1, *world, "--master-port", "29517", standalone=False)
        command = ["ip", "netns", "exec", name, *launch, *script(folder, fault, 1)]
        started.append(start(command, GLOO_SOCKET_IFNAME=link))
    return ended(*started)


def test_a_run_over_two_nodes(nodes: list[str], folder: Path) -> None:
    """The losses are those of one process after the other on one machine."""
    done = run(nodes, folder, "none")
    alone = ended(start([*torchrun(2), *script(folder, "none", 1)]))
    assert done.codes == [0, 0]
    assert alone.codes == [0]
    assert losses(done) == losses(alone)
    assert len(losses(done)) == 2


def losses(done: Ended) -> list[float]:
    """The losses that were printed."""
    return [json.loads(line)["loss"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("fault", ["kill-backward", "kill-transfer", "raise-forward"])
def test_both_nodes_end(nodes: list[str], folder: Path, fault: str) -> None:
    with no_child_remains():
        done = run(nodes, folder, fault)
    assert done.codes == [1, 1]
    said = {
        "raise": "rank 1 (stage 1): ValueError: on purpose",
        "kill": "rank 1 (stage 1) has ended without a word (killed, or out of memory?)",
    }
    assert done.told == [said[fault.partition("-")[0]]]
    assert (signal.Signals.SIGKILL.name in done.errors[1]) == fault.startswith("kill")
