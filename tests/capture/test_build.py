"""Building on meta and under a seed."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from fxpar.capture.build import LARGE, construction


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.tied = self.linear.weight
        self.random = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.items = nn.ParameterList([nn.Parameter(torch.zeros(2), requires_grad=False)])
        self.items[0].mark = "kept"
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.orthogonal_(self.linear.weight)
        self.register_buffer("table", torch.arange(4.0).outer(torch.ones(2)))
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]


def test_parameters_are_on_meta_and_buffers_are_real() -> None:
    with construction(real=False):
        net = Net()
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net.tied is net.linear.weight
    assert net.items[0].mark == "kept"
    assert not net.items[0].requires_grad
    assert net.table.sum() == 12
    assert net.rates == [0, 0.5, 1]


def test_the_seed_alone_decides() -> None:
    nets = []
    for seed in (1, 1, 2):
        torch.rand(3)
        with construction(real=True, seed=seed):
            nets.append(Net())
    one, same, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("real", [True, False])
def test_all_is_put_back(real: bool) -> None:
    register, state = nn.Module.register_parameter, torch.get_rng_state()
    with construction(real=real, dtype=torch.float64):
        assert nn.Linear(1, 1).weight.dtype == torch.float64
    with pytest.raises(ZeroDivisionError), construction(real=real):
        print(1 / 0)
    assert nn.Module.register_parameter is register
    assert torch.equal(torch.get_rng_state(), state)
    assert not nn.Linear(1, 1).weight.is_meta
    assert nn.Linear(1, 1).weight.dtype == torch.float32


def test_large_models_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with construction(real=False):
        net = nn.Sequential(*(nn.Linear(2**14, 2**14, bias=False) for _ in range(4)))
        large = nn.Parameter(torch.randn(LARGE, 2**10))
    assert large.is_meta
    assert sum(parameter.numel() for parameter in net.parameters()) == 2**30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18
