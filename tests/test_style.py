"""What holds for the code base as a whole: sizes, the order of packages, and what must not stand in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxpar

ROOT = Path(__file__).parents[1]
FOLDERS = ("fxpar", "rules", "tools", "examples", "tests", "benchmarks", "docs", ".ci")

#: The way of the data. A package imports only those before it.
ORDER = ("capture", "axes", "shard", "pipeline", "emit", "checkpoint", "runtime", "report")
#: What every package may import, and what therefore imports none of them.
EVERYWHERE = (
    "clock",
    "collector",
    "condition",
    "errors",
    "mesh",
    "plan",
    "schedule",
    "size",
    "textfile",
    "yamlfile",
)
#: Imports against the order: the graph has runtime ops in it, a model's weights may be in files, and what is emitted
#: has files of weights.
EXCEPTIONS = {
    "capture": {
        "fxpar.checkpoint.index",
        "fxpar.checkpoint.sharded",
        "fxpar.checkpoint.weights",
        "fxpar.runtime.experts",
    },
    "shard": {"fxpar.runtime"},
    "pipeline": {"fxpar.runtime"},
    "emit": {"fxpar.runtime", "fxpar.checkpoint"},
}
#: A module that answers at once must not import torch.
LIGHT = (*EVERYWHERE, "cli")

MODELS = re.compile(
    r"llama|mixtral|mistral|gemma|qwen|falcon|bloom|deepseek|mamba|olmo|cohere|whisper|chatglm|dbrx|starcoder"
    r"|gpt_?(2|j|neo|oss|bigcode)|nanogpt|(?<![a-z])(ro|al|distil)?bert(?![a-z])|(?<![a-z])t5(?![a-z0-9])"
    r"|(?<![a-z])phi_?(\d|moe)|ForCausalLM",
    re.IGNORECASE,
)
UNSAFE = re.compile(r"\btorch\.load\(|\bpickle\b|\byaml\.\w*load\w*\(|\.cuda\(|\bos\.system\(|shell=True")
LOCAL = re.compile(r"(?<![\w.])/(home|root|work|Users)/\w")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def files(*folders: str, suffix: str = "") -> list[Path]:
    """Every text file under some folders of the repository, with what tools leave behind left out."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob(f"*{suffix}")))
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


def texts() -> Iterator[tuple[str, str]]:
    """The name and content of each text file of the repository."""
    top = [
        path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".txt"} or path.name == "Makefile"
    ]
    for path in [*top, *files(*FOLDERS)]:
        if path.suffix not in {".safetensors", ".png", ".npz"}:
            yield name(path), path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(path: Path) -> str:
    """The code of a module without comments and docstrings; the lines of a YAML file without comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"(^|\s)#.*", "", text)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [*node.body[ast.get_docstring(node) is not None :]] or [ast.Pass()]
    return ast.unparse(tree)


def imports(path: Path) -> Iterator[str]:
    """The full name of whatever a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def allowed(package: str, imported: str) -> bool:
    """Whether a module of a package may import a name of fxpar."""
    top = imported.split(".")[1]
    inside = (*ORDER[: ORDER.index(package) + 1], *EVERYWHERE)
    return top in inside or any(f"{imported}.".startswith(f"{free}.") for free in EXCEPTIONS.get(package, ()))


@pytest.mark.parametrize(
    ("package", "imported", "may"),
    [
        ("axes", "fxpar.capture.program.Program", True),
        ("axes", "fxpar.mesh.Mesh", True),
        ("axes", "fxpar.shard.placement", False),
        ("capture", "fxpar.axes", False),
        ("capture", "fxpar.checkpoint.weights.Weights", True),
        ("capture", "fxpar.checkpoint.save", False),
        ("pipeline", "fxpar.emit.module", False),
        ("emit", "fxpar.runtime.ops", True),
        ("report", "fxpar.api", False),
    ],
)
def test_the_order_as_it_is_checked(package: str, imported: str, may: bool) -> None:
    assert allowed(package, imported) is may


def test_patterns_find_what_they_are_for() -> None:
    for word in ("LlamaConfig", "bert.encoder", "t5", "phi3", "phi_3", "GPT2Model", "distilbert"):
        assert MODELS.search(word), word
    for word in ("Hilbert", "phi", "at5", "looped", "experts"):
        assert not MODELS.search(word), word
    for word in ("torch.load(path)", "import pickle", "yaml.load(text)", "yaml.safe_load(text)", "x.cuda()"):
        assert UNSAFE.search(word), word
    assert LOCAL.search("see " + "/home" + "/someone/model")
    assert not LOCAL.search("a relative path/work/x")


def test_no_long_file() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in files(*FOLDERS, suffix=".py")}
    assert {file for file, length in lengths.items() if length > 500 and "/golden/" not in file} == set()


def test_packages_import_in_order() -> None:
    wrong = [
        f"{name(path)} imports {imported}"
        for package in ORDER
        for path in files(f"fxpar/{package}", suffix=".py")
        for imported in imports(path)
        if imported.startswith("fxpar.") and not allowed(package, imported)
    ]
    assert wrong == []


def test_what_all_import_imports_none() -> None:
    common = [path for stem in EVERYWHERE if (path := ROOT / f"fxpar/{stem}.py").exists()]
    packages = tuple(f"fxpar.{package}" for package in ORDER)
    assert [(path.name, used) for path in common for used in imports(path) if used.startswith(packages)] == []


def test_imports_are_absolute() -> None:
    relative = [
        name(path) for path in files("fxpar", suffix=".py") if any(i[0] == "." for i in imports(path))
    ]
    assert relative == []


def test_one_public_list() -> None:
    lists = [
        name(path)
        for path in files("fxpar", suffix=".py")
        if re.search(r"^__all__\b", path.read_text(), re.M)
    ]
    assert set(lists) <= {"fxpar/__init__.py"}
    assert [public for public in getattr(fxpar, "__all__", ()) if not hasattr(fxpar, public)] == []


def test_no_model_is_named() -> None:
    named = [
        f"{name(path)}: {found[0]}"
        for path in files("fxpar", "rules")
        if (found := MODELS.search(code(path)))
    ]
    assert named == []


def test_nothing_unsafe() -> None:
    unsafe = [
        f"{name(path)}: {found[0]}"
        for path in files("fxpar", suffix=".py")
        if (found := UNSAFE.search(code(path)))
    ]
    assert unsafe == []


@pytest.mark.parametrize("pattern", [LOCAL, UNFINISHED], ids=["paths of one machine", "unfinished"])
def test_no_text_has(pattern: re.Pattern[str]) -> None:
    assert [f"{file}: {found[0]}" for file, text in texts() if (found := pattern.search(text))] == []


@pytest.mark.parametrize("stem", [stem for stem in LIGHT if (ROOT / f"fxpar/{stem}.py").exists()])
def test_light_modules_leave_torch_alone(stem: str) -> None:
    check = f"import sys, fxpar.{stem}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
