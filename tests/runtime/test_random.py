"""Masks that follow placements, and come again when computed again."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fxpar import runtime
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.random import Randomness, stream_seed


def test_masks_are_equal_where_replicated_and_different_where_split():
    def run(_: int, groups: Groups) -> tuple[list, list]:
        x = torch.ones(64)
        same = runtime.dropout(x, 0.5, True, 7, 0)
        split = runtime.dropout(x, 0.5, True, 7, 0, (groups.coordinate["tp"],))
        return same.tolist(), split.tolist()

    results = simulate(Mesh({"dp": 2, "tp": 2}), run)
    assert len({tuple(same) for same, _ in results}) == 1
    assert results[0][1] == results[2][1] != results[1][1] == results[3][1]


def test_seed_operation_and_coordinates_each_make_another_mask():
    x = torch.ones(64)
    masks = [
        runtime.dropout(x, 0.5, True, *key) for key in [(1, 0), (2, 0), (1, 1), (1, 0, (0,)), (1, 0, (0, 0))]
    ]
    assert len({tuple(mask.tolist()) for mask in masks}) == 5


def test_values_scale_and_the_backward_uses_the_same_mask():
    x = torch.full((1000,), 3.0, dtype=torch.float64, requires_grad=True)
    y = runtime.dropout(x, 0.25, True, 1, 2)
    assert {round(value, 12) for value in y.detach().tolist()} == {0.0, 4.0}
    assert 650 < int((y != 0).sum()) < 850
    y.sum().backward()
    assert torch.equal(x.grad * 3, y.detach())


@pytest.mark.parametrize(("p", "training", "want"), [(0.5, False, 1.0), (0.0, True, 1.0), (1.0, True, 0.0)])
def test_limits(p, training, want):
    x = torch.ones(4, requires_grad=True)
    y = runtime.dropout(x, p, training, 1, 2)
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == [want] * 4


def test_an_impossible_probability_is_refused():
    with pytest.raises(RuntimeError, match=r"a probability lies between 0 and 1, p = 1.5 does not"):
        runtime.dropout(torch.ones(1), 1.5, True, 1, 2)


def test_checkpointing_draws_the_same_mask():
    def gradient(run) -> torch.Tensor:
        x = torch.linspace(1, 2, 50, requires_grad=True)
        run(x).sum().backward()
        return x.grad

    def block(x: torch.Tensor) -> torch.Tensor:
        noise = runtime.seeded_call(torch.rand_like, 3, 1, (), x)
        return runtime.dropout(x.sin(), 0.5, True, 3, 0).square() * noise

    assert torch.equal(gradient(block), gradient(lambda x: checkpoint(block, x, use_reentrant=False)))


def test_registration():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.fxpar.dropout.default, (x, 0.5, True, 2**62, 1, [0, 1]))
    torch.autograd.gradcheck(lambda x: runtime.dropout(x, 0.5, True, 5, 1, (2,)), (x,))


def test_seeded_operations_leave_the_generator_alone():
    before = torch.get_rng_state()
    q = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    with runtime.seeded(1, 2, (0,)):
        first = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        drawn = torch.rand(3)
    again = runtime.seeded_call(F.scaled_dot_product_attention, 1, 2, (0,), q, q, q, dropout_p=0.5)
    other = runtime.seeded_call(F.scaled_dot_product_attention, 1, 2, (1,), q, q, q, dropout_p=0.5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn, runtime.seeded_call(torch.rand, 1, 2, (0,), 3)[:1].expand(3))


def test_a_failure_inside_restores_the_generator():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), runtime.seeded(1, 2):
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), before)


def test_randomness_goes_on_where_it_was_saved():
    randomness = Randomness(11)
    first = randomness.next()
    state = randomness.state_dict()
    second = randomness.next()
    restored = Randomness(0)
    restored.load_state_dict(state)
    assert restored.next() == second != first
    assert Randomness(11).next() == first != Randomness(12).next()


def test_seeds_are_fixed_numbers():
    assert stream_seed(1, 2, (3,)) == stream_seed(1, 2, [3]) != stream_seed(1, 2, (3, 0))
    assert 0 <= stream_seed(0) < 2**63


def test_a_lone_group_needs_no_seed_of_its_own():
    groups = alone(Mesh({"tp": 1}))
    assert runtime.all_reduce(runtime.dropout(torch.ones(2), 0.0, True, 0, 0), groups.tp).tolist() == [1, 1]
