"""Layers are found, brought together where that is safe, and taken apart where they are no units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxpar.capture import Program, capture
from fxpar.emit.layers import candidates, find_layers
from fxpar.emit.order import live, together


class Pair(nn.Module):
    """Two linear layers, called one by one from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


class Model(nn.Module):
    """Three pairs, run as `order` says."""

    def __init__(self, order: Callable[[nn.ModuleList, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(Pair() for _ in range(3))
        self.order = order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.order(self.pairs, x)


def chain(pairs: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for pair in pairs:
        x = pair(x)
    return x


def parallel(pairs: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    firsts = [pair.first(x) for pair in pairs]
    return sum(pair.second(first) for pair, first in zip(pairs, firsts))


def crossed(pairs: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for pair in pairs:
        x = pair.first(x)
    for pair in pairs:
        x = pair.second(x)
    return x


def random_between(pairs: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    first = torch.dropout(pairs[0].first(x), 0.5, True)
    other = torch.dropout(pairs[1](x), 0.5, True)
    return pairs[0].second(torch.dropout(first, 0.5, True)) + pairs[2](other)


def twice(pairs: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    return pairs[1](pairs[0](pairs[1](x)))


def program(order: Callable[[nn.ModuleList, torch.Tensor], torch.Tensor]) -> Program:
    return capture(Model(order), kwargs={"x": torch.rand(2, 4)})


def runs(found: Program) -> list[str]:
    """The layers of the arranged nodes, one entry a run; nothing for nodes of no layer."""
    nodes = live(found.graph)
    ordered, keys = together(nodes, find_layers(nodes, candidates(found.modules)))
    assert sorted(map(str, ordered)) == sorted(map(str, nodes))
    done: set[object] = set()
    for node in ordered:
        assert all(value in done or value.op == "placeholder" for value in node.all_input_nodes)
        done.add(node)
    labels = [f"{keys[node].path}@{keys[node].call}" if node in keys else "" for node in ordered]
    return [label for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (chain, ["pairs.0@0", "pairs.1@0", "pairs.2@0"]),
        (parallel, ["pairs.0@0", "pairs.1@0", "", "pairs.2@0", ""]),
        (crossed, [""]),
        (twice, ["pairs.1@0", "pairs.0@0", "pairs.1@1"]),
    ],
)
def test_layers(order: Callable[[nn.ModuleList, torch.Tensor], torch.Tensor], expected: list[str]) -> None:
    assert runs(program(order)) == expected


def test_model_is_the_same_however_its_layers_run(
    text_of: Callable[..., str], module_of: Callable[..., nn.Module]
) -> None:
    for order in (chain, parallel, crossed, random_between, twice):
        model = Model(order)
        x = torch.rand(2, 4)
        found = capture(model, kwargs={"x": x})
        module = module_of(found, text_of(found))
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        torch.testing.assert_close(module(x)[0], expected)
        assert set(module.state_dict()) == set(model.state_dict())


def test_random_ops_keep_their_order() -> None:
    found = program(random_between)
    nodes = live(found.graph)
    ordered, _ = together(nodes, find_layers(nodes, candidates(found.modules)))
    randoms = [node.name for node in ordered if "dropout" in str(node.target)]
    assert randoms == [node.name for node in nodes if "dropout" in str(node.target)]
