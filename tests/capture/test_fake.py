"""A model with fake tensors, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor

from fxpar.capture.fake import fake_like, fake_mode, faked


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.two.bias.requires_grad_(False)
        self.register_buffer("table", torch.ones(2))
        self.held = [self.one.weight, {"table": self.table}]
        self.constant = torch.ones(3)
        self.absent = torch.empty(3, device="meta")


def test_ties_kinds_and_attributes() -> None:
    net = Net()
    with faked(net, fake_mode()):
        assert all(isinstance(tensor, FakeTensor) for tensor in [*net.parameters(), *net.buffers()])
        assert isinstance(net.one.weight, nn.Parameter)
        assert net.one.weight is net.two.weight is net.held[0]
        assert net.held[1]["table"] is net.table
        assert not net.two.bias.requires_grad
        assert not isinstance(net.constant, FakeTensor)
        assert net.absent.device.type == "cpu"


def test_all_is_put_back_in_order() -> None:
    net = Net()
    before = [(name, dict(vars(module))) for name, module in net.named_modules()]
    names = list(net.state_dict())
    with pytest.raises(ZeroDivisionError), faked(net, fake_mode()):
        print(1 / 0)
    with faked(net, fake_mode()):
        net.fresh = 1
        net.register_buffer("late", torch.ones(1))
        del net.two
    assert [(name, dict(vars(module))) for name, module in net.named_modules()] == before
    assert list(net.state_dict()) == names


def test_strides_are_kept() -> None:
    fake = fake_like(torch.empty(4, 6, dtype=torch.bfloat16, device="meta").t(), fake_mode())
    assert (fake.shape, fake.stride(), fake.dtype) == ((6, 4), (1, 6), torch.bfloat16)
