"""The collectives of tensor and sequence parallelism: as many, and as many bytes, as there must be.

A layer has two all-reduces forward and two backward; with sequence parallelism two all-gathers and two
reduce-scatters each way instead, of the same bytes. The whole model has one more of each way for the embedding and the
input of the head. The loss reduces one and two numbers a token.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from shard_case import Case, Run
from shard_models import BATCH, LAYERS, LENGTH, WIDTH, case
from shard_models import MODELS as KNOWN
from torch import nn

MODELS = ["llama", "gpt2", "phi3", "bert"]
BYTES = 8
STREAM = BATCH * LENGTH * WIDTH * BYTES
#: The whole size of what the loss reduces: the largest logit, then the sum of exponentials and the target's logit.
LOSS = [BATCH * LENGTH * BYTES, 2 * BATCH * LENGTH * BYTES]


def inserted(run: Run) -> Counter[str]:
    """How many of each runtime op stand in the graph; local slices and what has no collective are left out."""
    names = [str(node.target) for node in run.sharded.graph.nodes]
    local = ("slice", "keep_on_first", "count_targets")
    found = Counter(name.split(".")[1] for name in names if name.startswith("fxpar."))
    return Counter({name: count for name, count in found.items() if name not in local})


def ranks(run: Run) -> int:
    return run.sharded.mesh.size("tp")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_tensor_parallelism(name: str, size: int) -> None:
    run = case(name).check(f"tp{size}", "whole_sequence")
    each = 2 * LAYERS + 1
    loss = {"embedding": 1, "cross_entropy": 1}
    assert inserted(run) == Counter({"all_reduce": each, "sum_gradient": each, **loss})
    for counter in run.counters:
        assert counter.calls(phase="backward") == counter.calls("all_reduce", phase="backward") == each
        assert counter.calls() - len(LOSS) == 4 * LAYERS + 2
        assert counter.bytes(phase="backward") == each * 2 * (size - 1) / size * STREAM
        assert counter.bytes() == 2 * (size - 1) / size * (2 * each * STREAM + sum(LOSS))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_sequence_parallelism(name: str, size: int) -> None:
    run = case(name).check(f"tp{size}")
    each = 2 * LAYERS + 1
    loss = {"embedding": 1, "cross_entropy": 1}
    assert inserted(run) == Counter({"all_gather": each, "reduce_scatter": each, **loss})
    for counter in run.counters:
        for collective in ("all_gather", "reduce_scatter"):
            assert counter.calls(collective, phase="forward") == each
            assert counter.calls(collective, phase="backward") == each
            assert counter.bytes(collective) == 2 * each * (size - 1) / size * STREAM
        assert counter.calls("all_reduce", phase="forward") == len(LOSS)
        assert counter.calls("all_reduce", phase="backward") == 0
        assert counter.bytes("all_reduce", phase="forward") == 2 * (size - 1) / size * sum(LOSS)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_bytes_of_a_layer(table: str) -> None:
    """8 (t-1)/t A, of which the rest of the model has as much as half a layer."""
    counter = case("llama").check("tp4", table).counters[0]
    model = counter.bytes(phase="forward") + counter.bytes(phase="backward")
    layers = model - 2 * 3 / 4 * (2 * STREAM + sum(LOSS))
    assert layers == LAYERS * 8 * 3 / 4 * STREAM


@pytest.mark.parametrize("mesh", ["tp2", "cp2", "cp2 tp2", "dp2 tp2"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_without_a_gradient_is_communicated(name: str, mesh: str) -> None:
    """Masks, rotary tables, positions and labels are sliced or made again, never gathered."""
    local = ("slice", "count_targets")
    for node in case(name).shard(mesh).graph.nodes:
        if str(node.target).startswith("fxpar.") and str(node.target).split(".")[1] not in local:
            assert node.meta["grad"], node.format_node()


@pytest.mark.parametrize("name", MODELS)
def test_context_parallelism_gathers_keys_and_values_alone(name: str) -> None:
    run = case(name).check("cp2")
    found = inserted(run)
    assert found.pop("all_gather") == 2 * LAYERS
    assert found == Counter({"cross_entropy": 1, "all_reduce": 1})
    kept = run.counters[0].bytes("all_gather", phase="forward")
    assert run.counters[0].bytes("reduce_scatter", phase="backward") == kept


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_bias_of_a_row_split_is_added_once(name: str) -> None:
    graph = case(name).shard("tp2").graph
    kept = [n.args[0].meta["name"] for n in graph.nodes if str(n.target) == "fxpar.keep_on_first.default"]
    assert len(kept) == 2 * LAYERS
    assert all(path.endswith("bias") for path in kept)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_to_be_summed(name: str) -> None:
    split, whole = case(name).shard("tp2"), case(name).shard("tp2", "whole_sequence")
    norms = [n for n in split.tensors if any(word in n.lower() for word in ("norm", "ln_"))]
    norms = [n for n in norms if "cls." not in n]
    assert norms
    for path in norms:
        assert split.tensors[path].reduce == ("tp",), path
        assert whole.tensors[path].reduce == (), path
    for laid in split.tensors.values():
        assert not (laid.split_over and laid.reduce)


def test_data_ranks_sum_every_gradient() -> None:
    sharded = case("llama").shard("dp2 cp2 tp2")
    for name, laid in sharded.tensors.items():
        if sharded.program.placeholder(name).meta["kind"] == "parameter":
            assert laid.reduce[:2] == ("dp", "cp"), name


@cache
def eager(name: str) -> Case:
    """A model whose attention is written out as products and softmax."""
    build, inputs = KNOWN[name]
    torch.manual_seed(0)
    model: nn.Module = build(attn_implementation="eager")  # type: ignore[call-arg]
    return Case(model.double().train(), inputs())


@pytest.mark.parametrize(
    ("name", "mesh"),
    [*((name, mesh) for name in ("llama", "gpt2", "bert") for mesh in ("tp2", "cp2 tp2")), ("llama", "tp8")],
)
@pytest.mark.parametrize("table", ["default", "whole_sequence"])
def test_attention_that_is_written_out_needs_no_more(name: str, mesh: str, table: str) -> None:
    run, wanted = eager(name).check(mesh, table), case(name).check(mesh, table)
    assert run.error < 1e-9, str(run)
    assert not any("scaled_dot_product" in str(node.target) for node in run.sharded.graph.nodes)
    assert inserted(run) == inserted(wanted)
    for one, other in zip(run.counters, wanted.counters):
        assert (one.calls(), one.bytes()) == (other.calls(), other.bytes())
    for path, laid in wanted.sharded.tensors.items():
        found = run.sharded.tensors[path]
        assert (found.words, found.split_over, found.reduce) == (laid.words, laid.split_over, laid.reduce), (
            path
        )
