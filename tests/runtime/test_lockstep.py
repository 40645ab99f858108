"""The simulator: order, thread state, transport, counting, and every way in which ranks can go wrong."""

from __future__ import annotations

import pytest
import torch

from fxpar import runtime
from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.counter import Traffic
from fxpar.runtime.groups import Groups, find
from fxpar.runtime.lockstep import simulate

PAIR = Mesh({"tp": 2})
GRID = Mesh({"dp": 2, "tp": 2})


def test_ranks_run_in_turns_and_results_come_by_rank():
    order = []

    def run(rank: int, groups: Groups) -> int:
        order.append(rank)
        runtime.all_reduce(torch.ones(1), groups.tp)
        order.append(rank)
        return rank * 10

    assert list(simulate(Mesh({"tp": 3}), run)) == [0, 10, 20]
    assert order == [0, 1, 2, 2, 0, 1]


def test_each_rank_meets_its_own_group():
    def run(rank: int, groups: Groups) -> tuple[float, float, float]:
        x = torch.tensor(2.0**rank)
        return tuple(float(runtime.all_reduce(x, g)) for g in (groups.tp, groups.dp, groups["dp+tp"]))

    assert list(simulate(GRID, run)) == [(3, 5, 15), (3, 10, 15), (12, 5, 15), (12, 10, 15)]


def test_backward_meets_too():
    def run(rank: int, groups: Groups) -> torch.Tensor:
        x = torch.ones(3, requires_grad=True)
        (runtime.sum_gradient(x, groups.tp) * (rank + 1)).sum().backward()
        return x.grad

    for grad in simulate(PAIR, run):
        assert grad.tolist() == [3, 3, 3]


def test_an_error_names_its_rank_and_stops_all():
    reached = []

    def run(rank: int, groups: Groups) -> None:
        try:
            if rank == 1:
                raise ValueError("too small")
            runtime.all_reduce(torch.ones(1), groups.tp)
            reached.append(rank)
        except Exception:
            if rank != 1:
                reached.append(rank)
            raise

    with pytest.raises(RankError, match=r"rank 1 failed: ValueError: too small") as caught:
        simulate(Mesh({"tp": 4}), run)
    assert isinstance(caught.value.__cause__, ValueError)
    assert reached == []


def test_an_error_in_backward_names_its_rank():
    def run(rank: int, groups: Groups) -> None:
        x = torch.ones(3, requires_grad=True)
        y = runtime.sum_gradient(x, groups.tp)
        if rank == 1:
            y.register_hook(lambda _: 1 / 0)
        y.sum().backward()

    with pytest.raises(RankError, match="rank 1 failed: ZeroDivisionError"):
        simulate(PAIR, run)


def test_different_collectives_are_named():
    def run(rank: int, groups: Groups) -> None:
        x = torch.ones(2, 3)
        if rank == 0:
            runtime.all_reduce(x, groups.tp)
        else:
            runtime.all_gather(x, 0, groups.tp)

    with pytest.raises(RankError) as caught:
        simulate(PAIR, run)
    assert str(caught.value) == (
        "ranks 0 and 1 call different collectives on `tp`\n"
        "  rank 0: all_reduce sum of float32[2, 3]\n"
        "  rank 1: all_gather of float32[2, 3]"
    )


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64)])
def test_different_shapes_or_dtypes_are_named(other):
    with pytest.raises(RankError, match="different collectives on `tp`"):
        simulate(PAIR, lambda rank, groups: runtime.all_reduce(other if rank else torch.ones(2), groups.tp))


def test_a_deadlock_says_who_waits_for_what():
    def run(rank: int, groups: Groups) -> None:
        if rank == 0:
            runtime.all_reduce(torch.ones(2), groups.tp)
        if rank == 2:
            groups.transport.recv(3)

    with pytest.raises(RankError) as caught:
        simulate(GRID, run)
    assert str(caught.value) == (
        "the ranks wait for each other, or for ranks that have finished\n"
        "  rank 0 waits in all_reduce sum of float32[2] on `tp` of ranks 0, 1\n"
        "  rank 2 waits in recv from rank 3"
    )


def test_transport_keeps_order_and_wakes_only_its_receiver():
    mesh = Mesh({"pp": 2, "tp": 2})

    def run(rank: int, groups: Groups) -> list[float]:
        if rank < 2:
            for value in (1.0, 2.0):
                groups.transport.send(torch.tensor([value + 10 * rank]), rank + 2)
            groups.transport.send(torch.zeros(1), 3)
            return []
        total = runtime.all_reduce(torch.ones(1), groups.tp)
        like = torch.empty(1, device="meta")
        got = [float(groups.transport.recv(rank - 2, like)) for _ in range(2)]
        groups.transport.flush()
        return [*got, float(total)]

    results = simulate(mesh, run)
    assert results[2:] == [[1, 2, 2], [11, 12, 2]]
    assert results.counters[0].tallies[Traffic("send", "pp", "forward")].bytes == 8
    assert results.counters[0].calls("send", group="pp+tp") == 1


def test_transport_refuses_what_is_not_expected():
    def run(rank: int, groups: Groups) -> None:
        if rank == 0:
            groups.transport.send(torch.ones(2), 1)
        else:
            groups.transport.recv(0, torch.ones(3))

    with pytest.raises(RankError, match=r"rank 1 expects float32\[3\] from rank 0, which sends float32\[2\]"):
        simulate(PAIR, run)
    with pytest.raises(RankError, match="rank 0 sends to rank 2"):
        simulate(PAIR, lambda _, groups: groups.transport.send(torch.ones(1), 2))


def test_traffic_is_counted_by_phase_and_group():
    def run(_: int, groups: Groups) -> None:
        x = torch.ones(8, requires_grad=True)
        whole = runtime.all_gather(runtime.sum_gradient(x, groups.dp), 0, groups.tp)
        whole.sum().backward()
        with groups.counter.phase("step"):
            runtime.all_reduce(torch.ones(2), groups.tp)
        runtime.all_reduce(torch.ones(2), groups.cp)

    counter = simulate(GRID, run).counters[3]
    assert {traffic: (tally.calls, tally.bytes) for traffic, tally in counter.tallies.items()} == {
        Traffic("all_gather", "tp", "forward"): (1, 32.0),
        Traffic("reduce_scatter", "tp", "backward"): (1, 32.0),
        Traffic("all_reduce", "dp", "backward"): (1, 32.0),
        Traffic("all_reduce", "tp", "step"): (1, 8.0),
    }
    assert counter.calls(phase="backward") == 2
    assert counter.bytes("all_reduce") == 40
    counter.reset()
    assert counter.calls() == 0


def test_threads_have_the_callers_state():
    def run(_: int, __: Groups) -> tuple[bool, bool, bool, torch.dtype, str]:
        x = torch.ones(2, 2) @ torch.ones(2, 2)
        inference = torch.is_inference_mode_enabled()
        return torch.is_grad_enabled(), inference, x.is_inference(), x.dtype, x.device.type

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert simulate(PAIR, run)[1] == (False, False, False, torch.bfloat16, "cpu")
    with torch.inference_mode():
        assert simulate(PAIR, run)[0] == (False, True, True, torch.float32, "cpu")
    with torch.device("meta"):
        assert simulate(PAIR, run)[1] == (True, False, False, torch.float32, "meta")


def test_each_rank_has_its_own_random_state_and_the_caller_keeps_its():
    def run(rank: int, groups: Groups) -> tuple[float, float]:
        torch.manual_seed(rank)
        first = torch.rand(())
        runtime.all_reduce(first, groups.tp)
        return float(first), float(torch.rand(()))

    def expected(seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        return float(torch.rand(())), float(torch.rand(()))

    want = [expected(0), expected(1)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert list(simulate(PAIR, run)) == want
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_end_with_the_simulation():
    names = simulate(PAIR, lambda _, groups: groups.tp)
    assert names[0] != names[1]
    with pytest.raises(RankError, match="no group is registered as"):
        find(names[0])


def test_sixty_four_ranks():
    mesh = Mesh({"dp": 4, "cp": 4, "tp": 4})

    def run(rank: int, groups: Groups) -> float:
        x = torch.full((4,), float(rank), requires_grad=True)
        y = runtime.all_reduce(runtime.all_gather(x, 0, groups["dp+cp"]), groups.tp)
        y.sum().backward()
        return float(y.detach().sum())

    assert set(simulate(mesh, run)) == {4.0 * sum(range(64))}
