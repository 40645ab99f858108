"""What README and docs say is so: links, files, commands and options exist, and what is shown is what comes out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import click
import pytest
import torch

import fxpar
from fxpar import cli
from fxpar.runtime import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "examples/nanogpt.py"
#: Folders of the repository; a text in backticks that begins with one of them is a path.
FOLDERS = ("fxpar/", "rules/", "docs/", "examples/", "tests/", "tools/")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """Every call of fxpar on a page, in words: in backticks, indented, and after a `$`."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"`fxpar ([^`]+)`", text)
    found += re.findall(r"^(?: {4,}(?:\$ )?|\$ )fxpar (.*)$", text, re.M)
    yield from (shlex.split(line, comments=True) for line in found)


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}


@pages
def test_links(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).is_file()] == []


@pages
def test_files(page: Path) -> None:
    named = re.findall(r"`([\w./*]+)`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if name.startswith(FOLDERS) and not any(ROOT.glob(name.rstrip("/")))]
    assert missing == []


@pages
def test_commands_and_options(page: Path) -> None:
    context = click.Context(cli.cli)
    for name, *words in commands(page):
        command = cli.cli.get_command(context, name)
        if isinstance(command, click.Group):
            command = command.get_command(context, words[0])
        assert command is not None, (page.name, name, words)
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options(command), (page.name, name, words)


@pages
def test_options_of_a_run(page: Path) -> None:
    for line in re.findall(r"torchrun .*out/run\.py(.*)$", page.read_text(encoding="utf-8"), re.M):
        assert set(re.findall(r"--[\w-]+", line.partition("`")[0])) <= options(train._command), line


@pages
def test_options_that_are_named_alone(page: Path) -> None:
    """An option in backticks is one of some command's."""
    context = click.Context(cli.cli)
    known = options(train._command)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        group = command.commands.values() if isinstance(command, click.Group) else [command]
        known = known.union(*map(options, group))
    elsewhere = {"--update-golden"}
    named = re.findall(r"`(--[\w-]+)", page.read_text(encoding="utf-8"))
    assert set(named) - known - elsewhere == set()


def test_readme_code_prints_what_it_says() -> None:
    code, printed = blocks(ROOT / "README.md", "python")[0], blocks(ROOT / "README.md", "text")[0]
    done = subprocess.run(
        [sys.executable, "-"], input=code, cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == printed


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda p: p.name)
def test_consoles(page: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command in a console block prints what stands below it."""
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "console"):
        for call, shown in re.findall(r"^\$ fxpar (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            cli.run(shlex.split(call))
            captured = capfd.readouterr()
            assert captured.out + captured.err == shown


def test_code_about_checkpoints_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fxpar.partition(str(ROOT / MODEL), fxpar.Plan(), out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    names = {"fxpar": fxpar, "torch": torch}
    exec(blocks(ROOT / "docs" / "checkpoints.md", "python")[0], names)
    assert names["step"] == 10


@cache
def stage() -> str:
    return fxpar.partition(str(ROOT / MODEL), fxpar.Plan(tp=2, pp=2)).texts["stage_0.py"]


def test_excerpts_of_a_stage() -> None:
    head = "# out/stage_0.py\n"
    shown = [block for page in PAGES for block in blocks(page, "python") if block.startswith(head)]
    assert len(shown) > 2
    assert [block for block in shown if block.removeprefix(head) not in stage()] == []


def test_every_setting_of_a_plan_is_explained() -> None:
    text = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    keys = [line.partition(":")[0] for line in fxpar.Plan().to_yaml().splitlines()]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_yaml_blocks_of_plans_are_plans(tmp_path: Path) -> None:
    blocks_of_plans = [*blocks(ROOT / "README.md", "yaml"), *blocks(ROOT / "docs" / "plan.md", "yaml")]
    for text in blocks_of_plans:
        (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
        assert fxpar.Plan.from_yaml(tmp_path / "plan.yaml") != fxpar.Plan()


def test_every_file_of_a_folder_is_explained(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "output.md").read_text(encoding="utf-8")
    fxpar.partition(str(ROOT / MODEL), fxpar.Plan(tp=2, pp=2), out=tmp_path / "out")
    names = set(re.findall(r"`([\w.-]+\.\w+)`", text))
    similar = [re.sub(r"\d", "?", name) for name in names]
    files = [path.name for path in (tmp_path / "out").iterdir()]
    assert [file for file in files if not any(fnmatchcase(file, pattern) for pattern in similar)] == []
