"""Stages, run one after the other, compute what the whole model computes: outputs and every gradient."""

from __future__ import annotations

import pytest
import torch
from pipeline_models import MODELS, assert_same, batch, case, compose, gradients


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients(name: str, count: int) -> None:
    subject, inputs = case(name), batch(1)
    stages = subject.stages(count)
    modules = subject.modules(stages)
    wanted = subject.model(**inputs)
    found = dict(zip(stages[-1].outputs, compose(stages, modules, subject.flat(inputs))))
    for key in ("loss", "logits"):
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-12, atol=1e-12)
    assert_same(gradients(stages, modules), subject.whole([inputs])[1])


AT = {
    "gpt": ["layers.1", "layers.2.mlp"],
    "llama": ["model.layers.1.mlp", "model.norm"],
    "bert": ["bert.encoder.layer.1", "cls"],
    "t5": ["encoder.block.1", "decoder.block.1"],
}


@pytest.mark.parametrize("name", AT)
def test_cuts_that_are_named(name: str) -> None:
    subject, inputs = case(name), batch(2)
    stages = subject.stages(3, AT[name])
    modules = subject.modules(stages)
    compose(stages, modules, subject.flat(inputs))
    assert_same(gradients(stages, modules), subject.whole([inputs])[1])
    for stage, path in zip(stages[1:], AT[name]):
        first = next(n for n in stage.graph.nodes if n.op == "call_function" and n.meta["grad"])
        assert first.meta["module"].startswith(path)


def test_a_value_for_a_later_stage_is_relayed() -> None:
    stages = case("t5").stages(4, ["decoder.block.0", "decoder.block.1", "lm_head"])
    encoded, bias = (stages[1].received[0].name, stages[1].sent[-1].name)
    assert encoded in {value.name for value in stages[1].sent}
    assert bias in {value.name for value in stages[2].received}
    assert all(value.requires_grad for value in stages[2].received)
    relay = next(node for node in stages[1].graph.nodes if node.name == f"{encoded}_sent")
    assert relay.target is torch.ops.aten.clone.default


def test_masks_and_positions_never_travel() -> None:
    for stage in case("gpt").stages(4):
        assert all(value.requires_grad for value in stage.sent)
    for stage in case("llama").stages(4, [f"model.layers.{layer}" for layer in (1, 2, 3)]):
        assert len(stage.sent) == (stage.index < 3)


def test_shared_parameters_are_recorded() -> None:
    first, second, third = case("gpt").stages(3)
    assert first.shared == third.shared == {"tokens.weight": (0, 2)}
    assert second.shared == {}
    there, back = case("gpt").stages(2, ranks=(0, 0))
    assert there.shared == back.shared == {}


def test_every_tensor_is_held_once() -> None:
    subject = case("gpt")
    stages = subject.stages(4)
    held = [name for stage in stages for name in stage.parameters()]
    assert sorted(held) == sorted([*(name for name, _ in subject.model.named_parameters()), "tokens.weight"])


def test_a_buffer_is_updated_by_one_stage() -> None:
    subject = case("gpt")
    calls = int(subject.model.calls)
    stages = subject.stages(3)
    modules = subject.modules(stages)
    compose(stages, modules, subject.flat(batch(0)))
    assert [int(module.calls) for module in modules if hasattr(module, "calls")] == [calls + 1]


def test_names_do_not_depend_on_the_run() -> None:
    one, other = case("t5").stages(3), case("t5").stages(3)
    assert [str(stage.graph) for stage in one] == [str(stage.graph) for stage in other]
