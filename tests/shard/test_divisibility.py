"""Splits that do not divide, from a plan to the text of the error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fxpar.capture.capture import capture
from fxpar.capture.program import Program
from fxpar.errors import PlanError, Violations
from fxpar.plan import Plan
from fxpar.rulebook import Rulebook
from fxpar.shard.shard import shard


@pytest.fixture(scope="module")
def program() -> Program:
    """6 heads of 64 that share 3 heads of keys and values, for a batch of 2 sequences of 16."""
    config = transformers.LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        vocab_size=512,
        use_cache=False,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    return capture(model, (), {"input_ids": tokens, "labels": tokens.clone()})


def refused(program: Program, plan: Plan) -> PlanError:
    book = Rulebook.load()
    with pytest.raises(PlanError) as caught:
        shard(program, plan.mesh, book.table(plan), book.ops, book.names)
    return caught.value


def text(error: PlanError) -> str:
    """The error's text, without line numbers of a model that is not ours."""
    return re.sub(r"(modeling_\w+\.py):\d+", r"\1:N", str(error))


HEADS = """\
  model.layers.0.self_attn.q_proj.weight (modeling_llama.py:N): heads = 3, tp = 4
  and 1 more of that size
  tp may be 1 or 3"""


def test_the_row_of_a_plan(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("tp: 4\nsplits:\n  heads: tp\n")
    assert (
        text(refused(program, Plan.from_yaml("plan.yaml")))
        == f"""\
plan.yaml:3:10: axis `heads` does not divide over `tp`
  3 |   heads: tp
    |          ^
{HEADS}"""
    )


def test_the_row_of_the_table_that_is_shipped(program: Program) -> None:
    lines = text(refused(program, Plan(tp=4))).splitlines()
    assert lines[0] == "rules/splits/default.yaml:2:8: axis `heads` does not divide over `tp`"
    assert lines[1].startswith("  2 | heads: tp ")
    assert lines[2:] == ["    |        ^", *HEADS.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "options", "place"),
    [
        ({"splits": {"heads": "tp"}}, [], "Plan(splits=...)"),
        ({}, ["splits.heads=tp"], "--set splits.heads=tp"),
    ],
)
def test_a_row_without_a_file(
    program: Program, arguments: Mapping[str, Any], options: list[str], place: str
) -> None:
    error = refused(program, Plan(tp=4, **arguments).override(options))
    assert text(error) == f"{place}: axis `heads` does not divide over `tp`\n{HEADS}"


def test_all_violations_at_once(program: Program) -> None:
    error = refused(program, Plan(tp=4, cp=3, dp=4))
    assert isinstance(error, Violations)
    assert [(e.what, text(e).splitlines()[-2:]) for e in error.errors] == [
        ("axis `heads` does not divide over `tp`", ["  and 1 more of that size", "  tp may be 1 or 3"]),
        (
            "axis `sequence` does not divide over `cp`",
            ["  input_ids (modeling_llama.py:N): sequence = 16, cp = 3", "  cp may be 1, 2, 4, 8 or 16"],
        ),
        (
            "axis `batch` does not divide over `dp`",
            ["  input_ids (modeling_llama.py:N): batch = 2, dp = 4", "  dp may be 1 or 2"],
        ),
    ]


def test_what_is_left_by_the_mesh_dims_before(program: Program) -> None:
    plan = Plan(tp=3, cp=8, splits={"sequence": ["cp", "tp"], "ffn": None, "vocab": None})
    assert (
        text(refused(program, plan))
        == """\
Plan(splits=...): axis `sequence` does not divide over `tp`
  input_ids (modeling_llama.py:N): sequence = 16, of which cp = 8 leaves 2, tp = 3
  tp may be 1 or 2"""
    )
