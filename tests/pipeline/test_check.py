"""The check of stages against their graph finds what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pipeline_models import case

from fxpar.errors import FxparError
from fxpar.pipeline.check import check
from fxpar.pipeline.stages import Stage


def _swap_operands(stages: list[Stage]) -> None:
    add = stages[1].graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)[0]
    add.args = add.args[::-1]


def _lose_a_value(stages: list[Stage]) -> None:
    stages[0].sent = stages[0].sent[:-1]


def _drop_a_node(stages: list[Stage]) -> None:
    loss = stages[2].graph.find_nodes(op="call_function", target=torch.ops.aten.cross_entropy_loss.default)[0]
    loss.replace_all_uses_with(next(iter(stages[2].graph.nodes)))
    stages[2].graph.erase_node(loss)


WRONG = {
    _swap_operands: r"stage 1: node `add_\w+` is not what it is in the graph",
    _lose_a_value: r"stage 0 sends \['add_\w+'\], stage 1 receives \['add_\w+', 'mean'\]",
    _drop_a_node: r"node `cross_entropy_loss` runs in 0 stages\nthe graph returns",
}


@pytest.mark.parametrize("spoil", WRONG)
def test_found(spoil: Callable[[list[Stage]], None]) -> None:
    subject = case("gpt")
    stages = subject.stages(3, ["layers.1", "layers.2"])
    spoil(stages)
    with pytest.raises(FxparError, match=WRONG[spoil]):
        check(subject.program.graph, stages)
