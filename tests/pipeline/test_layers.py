"""The layers of a model, and stages that have so many of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers
from pipeline_models import batch, case
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.errors import PipelineError, Place
from fxpar.pipeline.cut import choose
from fxpar.pipeline.flow import analyse
from fxpar.pipeline.layers import layer_counts, layer_positions, layers, names

KNOWN = {
    "gpt": ["layers.0-3"],
    "llama": ["model.layers.0-3"],
    "gpt2": ["transformer.h.0-3"],
    "bert": ["bert.encoder.layer.0-3"],
    "t5": ["encoder.block.0-1", "decoder.block.0-1"],
}


@pytest.mark.parametrize("name", KNOWN)
def test_layers_of_models(name: str) -> None:
    known = layers(analyse(case(name).program.graph))
    assert names(known) == KNOWN[name]
    assert len(known) == 4
    assert all(before.end <= after.start for before, after in pairwise(known))


class Twice(nn.Module):
    """Blocks that use one module twice, called in two rounds, behind a sequence of plain modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Tanh()}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            for block in self.blocks:
                x = x + block["b"](block["a"](block["b"](x)))
        return x


def test_layers_called_again_count_again() -> None:
    known = layers(analyse(capture(Twice(), [torch.zeros(3, 4)]).graph))
    assert [layer.path for layer in known] == ["blocks.0", "blocks.1", "blocks.0", "blocks.1"]


def test_one_layer_called_twelve_times() -> None:
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.AlbertConfig(**sizes, embedding_size=8, num_hidden_layers=12)
    model = transformers.AlbertForMaskedLM(config).eval()
    graph = capture(model, kwargs=batch(0)).graph
    assert names(layers(analyse(graph))) == ["albert.encoder.albert_layer_groups.0 (12 calls)"]
    cuts = choose(graph, 3, [5, 4, 3])
    assert layer_counts(cuts.flow, cuts.positions) == [5, 4, 3]
    whole = choose(graph, 4)
    assert layer_counts(whole.flow, whole.positions) == [3, 3, 3, 3]


def test_plain_modules_are_layers_where_there_are_no_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    cuts = choose(capture(model, [torch.zeros(3, 4)]).graph, 2, [2, 1])
    assert [node.meta["module"] for node in cuts.before()] == ["2"]


class Nested(nn.Module):
    """Blocks in the middle of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.body = nn.Sequential(nn.Linear(4, 4), blocks, nn.LayerNorm(4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


def test_the_container_that_is_repeated_counts() -> None:
    graph = capture(Nested(), [torch.zeros(3, 4)]).graph
    assert names(layers(analyse(graph))) == ["body.1.0-2"]


SPLIT = {
    "gpt": ([1, 2, 1], ["layers.1.norm", "layers.3.norm"]),
    "llama": ([0, 2, 2, 0], ["model.layers.0", "model.layers.2", "model.norm"]),
    "t5": ([2, 1, 1], ["decoder.block.0", "decoder.block.1"]),
    "gpt2": ([4, 0], ["transformer.ln_f"]),
}


@pytest.mark.parametrize("name", SPLIT)
def test_stages_have_so_many_layers(name: str) -> None:
    counts, begins = SPLIT[name]
    subject = case(name)
    cuts = choose(subject.program.graph, len(counts), counts)
    modules = [node.meta["module"] for node in cuts.before()]
    assert all(f"{module}.".startswith(f"{begin}.") for module, begin in zip(modules, begins)), modules
    assert layer_counts(cuts.flow, cuts.positions) == counts
    assert len(subject.stages(len(counts), counts)) == len(counts)


def test_what_lies_between_two_stacks_is_a_stage_where_that_is_asked_for() -> None:
    cuts = choose(case("t5").program.graph, 3, [2, 0, 2])
    begins = [node.meta["module"] for node in cuts.before()]
    assert begins[0].startswith("encoder.final_layer_norm")
    assert begins[1].startswith("decoder.block.0")


REFUSED = {
    "a number too few": ([2, 2], 3, "3 stages need 3 numbers of layers, `layers` has 2\n  [2, 2]"),
    "a layer too many": (
        [3, 2],
        2,
        "`layers` counts 5 layers, the model has 4\n  its layers are layers.0-3",
    ),
    "two stages before the layers": (
        [0, 0, 4],
        3,
        "stage 1 would be empty: it has 0 layers, and nothing else is left for it\n  [0, 0, 4]",
    ),
    "two stages behind the layers": (
        [4, 0, 0],
        3,
        "stage 1 would be empty: it has 0 layers, and nothing else is left for it\n  [4, 0, 0]",
    ),
    "nothing between two layers": (
        [2, 0, 2],
        3,
        "stage 1 would be empty: it has 0 layers, and nothing else is left for it\n  [2, 0, 2]",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason: str) -> None:
    counts, stages, text = REFUSED[reason]
    with pytest.raises(PipelineError) as error:
        choose(case("gpt").program.graph, stages, counts)
    assert str(error.value) == text


def test_a_model_without_layers() -> None:
    place = Place("plan.yaml", 2, 11, "  layers: [1, 1]")
    with pytest.raises(PipelineError) as error:
        choose(capture(nn.Linear(4, 4), [torch.zeros(3, 4)]).graph, 2, [1, 1], place)
    assert str(error.value) == (
        "plan.yaml:2:11: the model has no layers to count: none of its modules stand in a numbered container\n"
        "  2 |   layers: [1, 1]\n"
        "    |           ^\n"
        "  `at` names modules to begin stages with"
    )


def test_nothing_behind_the_last_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(PipelineError, match="stage 1 would be empty"):
        choose(capture(model, [torch.zeros(3, 4)]).graph, 2, [2, 0])


def test_no_stage_begins_between_changes_in_place() -> None:
    flow = analyse(case("gpt").program.graph)
    barred = replace(flow, barred=frozenset({layers(flow)[2].start}))
    with pytest.raises(PipelineError) as error:
        layer_positions(barred, 2, [2, 2])
    assert str(error.value).startswith(
        "stage 1 cannot begin there: a value is changed in place before and after that\n  layers.2.norm ("
    )
