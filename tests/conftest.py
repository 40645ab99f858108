"""What all tests share: one thread, one seed, and texts held against accepted ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

import hypothesis
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)

# The same examples in every run of CI; elsewhere others are looked for. How long one takes says nothing on a busy
# machine.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept the texts that tests produce now")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return `golden(name, text)`: hold a text against `tests/golden/name`, or accept it.

    With `--update-golden` the text is written. Otherwise a difference fails the test with a unified diff
    and the command that accepts the new text.
    """

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        accepted = path.read_text(encoding="utf-8") if path.exists() else ""
        if not path.exists() or text != accepted:
            pytest.fail(difference(name, accepted, text, request.node.nodeid), pytrace=False)

    return check


def difference(name: str, accepted: str, text: str, test: str) -> str:
    """Return the message of a text that is not the accepted one."""
    lines = unified_diff(
        accepted.splitlines(),
        text.splitlines(),
        f"golden/{name} (accepted)",
        f"golden/{name} (now)",
        lineterm="",
    )
    accept = f'to accept: python -m pytest "{test}" --update-golden'
    return "\n".join([f"the text is not that of tests/golden/{name}", *lines, accept])
