"""What stages hold, receive, send and tell the runtime."""

from __future__ import annotations

import json

import pytest
import torch
from pipeline_models import GPT, assert_same, batch, case, compose, gradients
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.errors import PipelineError
from fxpar.pipeline.cut import choose
from fxpar.pipeline.module import StageModule
from fxpar.pipeline.spec import StageSpec
from fxpar.pipeline.stages import Stage, build


def cut(model: nn.Module, *args: Tensor, at: list[str]) -> list[Stage]:
    program = capture(model, args)
    return build(choose(program.graph, len(at) + 1, at), program.output_names)


def test_specifications_survive_the_manifest() -> None:
    for stage in case("gpt").stages(3):
        spec = stage.spec()
        assert StageSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.groups() == {"pp[0,2]": ["tokens.weight"]}
    assert (spec.loss.name, spec.loss.shape, spec.loss.dtype, spec.is_last) == ("loss", (), "float64", True)
    assert [value.dtype for value in spec.received] == ["float64", "float64"]


def test_placeholders_stand_in_order() -> None:
    kinds = ("parameter", "buffer", "constant", "received", "input")
    for stage in case("t5").stages(3):
        placeholders = stage.graph.find_nodes(op="placeholder")
        order = [kinds.index(node.meta["kind"]) for node in placeholders]
        assert order == sorted(order)
        received = [node.name for node in placeholders if node.meta["kind"] == "received"]
        assert received == [value.name for value in stage.received]
        assert {node.meta["name"] for node in placeholders} >= set(stage.parameters())


def test_prepared_values_are_given_like_inputs() -> None:
    graph = capture(GPT(2).double(), kwargs=batch(0)).graph
    labels = next(node for node in graph.nodes if node.name == "labels")
    labels.meta["kind"] = "prepared"
    first, last = build(choose(graph, 2))
    assert (first.inputs, last.inputs) == (("input_ids",), ("labels",))


def test_outputs_that_are_made_early() -> None:
    first, second, third = case("gpt").stages(3, ["layers.1", "layers.3"])
    assert (first.computes, second.computes, third.computes) == (("early",), (), ("loss", "logits"))
    assert first.outputs == third.outputs == ("loss", "early", "logits")
    assert {value.name for value in first.sent} & {value.name for value in third.received} == {"mean"}


class Frozen(nn.Module):
    """Its first layer does not learn, and one parameter is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        self.layers[0].requires_grad_(False)
        self.layers[1].register_parameter("spare", nn.Parameter(torch.zeros(2)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.sum()


def test_what_does_not_learn_gets_no_gradient() -> None:
    torch.manual_seed(0)
    model, x = Frozen(), torch.randn(2, 4, dtype=torch.float64)
    program = capture(model, [x])
    stages = build(choose(program.graph, 3, ["layers.1", "layers.2"]), ["loss"], "loss")
    assert [value.requires_grad for stage in stages for value in stage.sent] == [False, True]
    assert stages[1].parameters() == ("layers.1.weight", "layers.1.bias", "layers.1.spare")
    modules = [StageModule(stage, {k: v.detach() for k, v in program.tensors.items()}) for stage in stages]
    compose(stages, modules, {"x": x})
    model(x).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(gradients(stages, modules), wanted)


def test_views_and_gaps_are_copied_before_they_are_sent() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).t())

    first, second = cut(Model(), torch.zeros(3, 2), at=["two"])
    (sent,) = first.graph.output_node().args[0]
    assert sent.target is torch.ops.aten.clone.default
    assert (second.received[0].spec().shape, second.received[0].val.is_contiguous()) == ((4, 3), True)


def test_a_transposed_weight_stays_with_its_users() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.one, self.two = nn.Tanh(), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            turned = self.weight.t()
            return self.two(self.one(x @ turned) @ turned)

    first, second = cut(Model(), torch.zeros(3, 3), at=["two"])
    assert [len(stage.received) for stage in (first, second)] == [0, 1]
    first, second = cut(Model(), torch.zeros(3, 3), at=["one"])
    assert [value.name for value in second.received] == ["matmul"]
    assert first.shared == second.shared == {"weight": (0, 1)}


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ("los", "the model has no output `los` to be its loss\n  it has loss, early, logits"),
        ("logits", "output `logits` is no loss: it is torch.float64 of shape [2, 6, 48]\n"
                   "  a loss is one floating-point number"),
    ],
)  # fmt: skip
def test_no_loss(loss: str, text: str) -> None:
    program = case("gpt").program
    with pytest.raises(PipelineError) as error:
        build(choose(program.graph, 2), program.output_names, loss)
    assert str(error.value) == text
