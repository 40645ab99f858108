"""Where stages begin: chosen, or named by the plan, and what is said where that cannot be."""

from __future__ import annotations

import pytest
import torch
import transformers
from pipeline_models import GPT, batch, case
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.errors import PipelineError, Place
from fxpar.pipeline.cut import choose
from fxpar.pipeline.layers import layer_counts

#: Bytes of the residual stream, and of the output that the first layer makes.
STREAM, EARLY = 2 * 6 * 16 * 8, 2 * 16 * 8


def test_equal_layers_are_shared_evenly() -> None:
    cuts = choose(capture(GPT(8).double(), kwargs=batch(0)).graph, 4)
    assert [node.meta["module"] for node in cuts.before()] == [
        "layers.2.norm",
        "layers.4.norm",
        "layers.6.norm",
    ]
    assert cuts.sent_bytes == (STREAM + EARLY,) * 3
    assert cuts.stages == 4
    assert 0 <= cuts.imbalance < 0.4
    assert sum(cuts.costs) == sum(choose(cuts.flow.graph, 1).costs)


def test_a_costly_head_has_fewer_layers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(9))
            self.head = nn.Linear(32, 96)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x).sum()

    cuts = choose(capture(Model(), [torch.zeros(64, 32)]).graph, 2)
    assert [node.meta["module"] for node in cuts.before()] == ["layers.6"]


@pytest.mark.parametrize(
    ("vocabulary", "tied", "expected"),
    [(256, False, [2, 2, 2, 2]), (24_000, False, [2, 3, 3, 0]), (24_000, True, [2, 3, 3, 0])],
)
def test_the_stage_of_a_large_vocabulary_has_fewer_layers(
    vocabulary: int, tied: bool, expected: list[int]
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=vocabulary, tie_word_embeddings=tied, use_cache=False
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    ids = torch.zeros(2, 128, dtype=torch.int64)
    cuts = choose(capture(model, kwargs={"input_ids": ids, "labels": ids}).graph, 4)
    assert layer_counts(cuts.flow, cuts.positions) == expected
    assert cuts.sent_bytes == (2 * 128 * 512 * 4,) * 3


def test_stages_are_fast_rather_than_small_to_send() -> None:
    """Behind the encoder less has to be sent, but then one stage has all layers of the decoder and the head."""
    cuts = choose(case("t5").program.graph, 2)
    slower = choose(case("t5").program.graph, 2, [2, 2])
    assert max(cuts.costs) <= max(slower.costs)


def test_one_stage_is_the_graph() -> None:
    cuts = choose(case("gpt").program.graph, 1)
    assert (cuts.positions, cuts.sent_bytes, cuts.imbalance) == ((), (), 0)


def test_named_cuts_stand_in_the_order_of_the_graph() -> None:
    graph = case("gpt").program.graph
    cuts = choose(graph, 3, ["layers.2", "layers.1"])
    assert [node.meta["module"] for node in cuts.before()] == ["layers.1.norm", "layers.2.norm"]
    assert cuts.positions == choose(graph, 3, ["layers.1", "layers.2.norm"]).positions


class Twice(nn.Module):
    """Calls one layer twice with another between, another twice in a row, and has a module without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.again = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.rotary = nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        angles = self.rotary(x)
        return self.again(self.again(self.first(self.other(self.first(x))))) * angles


REFUSED = {
    "unknown": (
        ["othr"],
        2,
        "no node of the graph comes from a module `othr`\n  a stage can begin with: other",
    ),
    "nothing alike": (
        ["decoder"],
        2,
        "no node of the graph comes from a module `decoder`\n  a stage can begin with: other",
    ),
    "called at two places": (
        ["first"],
        2,
        "module `first` is called at 2 places of the graph: which one begins the stage is open\n"
        "  a stage can begin with: other",
    ),
    "called twice in a row": (
        ["again"],
        2,
        "module `again` is called at 2 places of the graph: which one begins the stage is open\n"
        "  a stage can begin with: other",
    ),
    "computed everywhere": (
        ["rotary"],
        2,
        "module `rotary` cannot begin a stage: what it computes is computed again wherever it is needed\n"
        "  a stage can begin with: other",
    ),
    "too few": (["other"], 3, "3 stages need 2 modules to begin with, `at` names 1\n  other"),
    "the same": (
        ["other", "other"],
        3,
        "`other` and `other` begin at the same node: a stage between them would be empty",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason: str) -> None:
    at, stages, text = REFUSED[reason]
    graph = capture(Twice(), [torch.zeros(3, 2)]).graph
    with pytest.raises(PipelineError) as error:
        choose(graph, stages, at)
    assert str(error.value) == text


def test_the_first_module_begins_no_later_stage() -> None:
    place = Place("plan.yaml", 3, 9, "    at: [tokens]")
    with pytest.raises(PipelineError) as error:
        choose(case("gpt").program.graph, 2, ["tokens"], place)
    assert str(error.value) == (
        "plan.yaml:3:9: module `tokens` begins the graph: the stage before it would be empty\n"
        "  3 |     at: [tokens]\n"
        "    |         ^\n"
        "  a stage can begin with: positions, layers.0, layers.1, layers.2, layers.3, layers.0.norm, ... (37 in all)"
    )


def test_more_stages_than_the_graph_has_places() -> None:
    with pytest.raises(PipelineError) as error:
        choose(capture(Twice(), [torch.zeros(3, 2)]).graph, 9)
    assert str(error.value) == (
        "9 stages need 8 places to cut, the graph can be cut at 4: 5 stages at most\n  each stage needs a parameter"
        "\n  pp x vpp is the number of stages: at most 5"
    )
