"""Gradients summed, measured and clipped over ranks against those of the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxpar.errors import FxparError
from fxpar.mesh import Mesh
from fxpar.runtime.gradients import ParameterGradient, clip_gradients_, gradient_norm, reduce_gradients
from fxpar.runtime.groups import Groups
from fxpar.runtime.lockstep import Results, simulate
from fxpar.shard.overlap import Overlap

GRID = Mesh({"dp": 2, "tp": 2})


def parameter(size: int, grad: float | None, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    """A parameter whose gradient is `grad`, 2 * grad, ..."""
    made = nn.Parameter(torch.zeros(size, dtype=dtype))
    if grad is not None:
        made.grad = torch.arange(1, size + 1, dtype=dtype) * grad
    return made


def test_sums_are_coalesced_by_group_and_dtype():
    def run(rank: int, groups: Groups) -> list[list[float]]:
        marked = [
            ParameterGradient("b", parameter(2, rank + 1.0), ("dp",)),
            ParameterGradient("a", parameter(3, rank + 1.0), ("dp", "tp")),
            ParameterGradient("c", parameter(1, rank + 1.0, torch.bfloat16), ("dp",)),
            ParameterGradient("d", parameter(1, 5.0)),
            ParameterGradient("e", parameter(1, 5.0), ("cp",)),
        ]
        reduce_gradients(marked, groups)
        return [each.parameter.grad.tolist() for each in marked]

    results = simulate(GRID, run)
    assert results[0] == [[4, 8], [10, 20, 30], [4], [5], [5]]
    assert results[3] == [[6, 12], [10, 20, 30], [6], [5], [5]]
    counter = results.counters[0]
    assert counter.calls("all_reduce", group="dp", phase="step") == 2
    assert counter.calls("all_reduce", group="tp", phase="step") == counter.calls() - 2 == 1


def test_a_missing_gradient_is_zero_unless_all_miss_it():
    def run(rank: int, groups: Groups) -> tuple[list[float], Tensor | None]:
        some, none = parameter(2, 3.0 if rank else None), parameter(2, None)
        reduce_gradients(
            [ParameterGradient("n", none, ("tp",)), ParameterGradient("s", some, ("tp",))], groups
        )
        return some.grad.tolist(), none.grad

    assert list(simulate(Mesh({"tp": 2}), run)) == [([3, 6], None)] * 2


def model(groups: Groups) -> list[ParameterGradient]:
    """Four stages: on each a weight split over tp and a bias, and one tied weight on the first and the last."""
    stage, tp = groups.index("pp"), groups.index("tp")
    marked = [
        ParameterGradient(f"w{stage}", parameter(2, stage + 10.0 * tp), (), ("pp", "tp")),
        ParameterGradient(f"b{stage}", parameter(3, stage + 0.5), ("tp",), ("pp",)),
    ]
    if stage in (0, 3):
        tied = parameter(2, stage + 1.0)
        marked.append(ParameterGradient("tied", tied, ("dp",), ("pp", "tp"), tie="pp[0,3]"))
    return marked


def whole_gradients() -> list[Tensor]:
    """The gradients of the whole model that `model` gives once they are summed."""
    one, two = torch.arange(1.0, 3).double(), torch.arange(1.0, 4).double()
    split = [one * (stage + 10 * tp) for stage in range(4) for tp in range(2)]
    biases = [two * (stage + 0.5) * 2 for stage in range(4)]
    return [*split, *biases, one * 10, one * 10]


def run_model(max_norm: float | None = None) -> Results:
    def run(_: int, groups: Groups) -> tuple[Tensor, list[ParameterGradient]]:
        marked = model(groups)
        reduce_gradients(marked, groups)
        if max_norm is None:
            return gradient_norm(marked, groups), marked
        return clip_gradients_(marked, max_norm, groups), marked

    return simulate(Mesh({"pp": 4, "dp": 2, "tp": 2}), run)


def test_tied_gradients_are_equal_on_their_stages():
    for rank, (_, marked) in enumerate(run_model()):
        tied = [each.parameter.grad.tolist() for each in marked if each.name == "tied"]
        assert tied == ([[10, 20]] if rank // 4 in (0, 3) else [])


def test_every_shard_counts_once():
    results = run_model()
    want = torch.cat(whole_gradients()).norm()
    for norm, _ in results:
        torch.testing.assert_close(norm, want, rtol=1e-12, atol=0)
    assert results.counters[5].calls("all_reduce", group="pp+dp+tp", phase="step") == 1


@pytest.mark.parametrize("max_norm", [1.0, 1e4])
def test_clipping_is_torchs(max_norm):
    whole = [nn.Parameter(torch.zeros_like(gradient)) for gradient in whole_gradients()]
    for each, gradient in zip(whole, whole_gradients()):
        each.grad = gradient.clone()
    want = nn.utils.clip_grad_norm_(whole, max_norm)
    for rank, (norm, marked) in enumerate(run_model(max_norm)):
        torch.testing.assert_close(norm, want)
        own = whole[rank // 4 * 2 + rank % 2].grad
        torch.testing.assert_close(marked[0].parameter.grad, own)


def test_copies_within_a_mesh_dim():
    """Two kv heads on four tp ranks: neighbours hold the same shard."""

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        first = rank // 2 * 2
        marked = [
            ParameterGradient("k", parameter(1, rank + 1.0), (), ("tp",), tie=f"tp[{first},{first + 1}]")
        ]
        reduce_gradients(marked, groups)
        return marked[0].parameter.grad, gradient_norm(marked, groups)

    results = simulate(Mesh({"tp": 4}), run)
    assert [float(grad) for grad, _ in results] == [3, 3, 7, 7]
    for _, norm in results:
        torch.testing.assert_close(norm, torch.tensor([3.0, 7.0]).double().norm())


def test_no_gradients_have_no_norm():
    def run(rank: int, groups: Groups) -> float:
        marked = [ParameterGradient("a", parameter(2, None))] if rank else []
        return float(clip_gradients_(marked, 1.0, groups))

    assert list(simulate(Mesh({"pp": 2}), run)) == [0.0, 0.0]


def test_low_precision_is_measured_in_float32():
    marked = [ParameterGradient("a", parameter(1, 1.0, torch.float16))]
    marked[0].parameter.grad.fill_(60000.0)

    def run(_: int, groups: Groups) -> float:
        return float(
            gradient_norm([ParameterGradient("b", parameter(1, 60000.0, torch.float16)), *marked], groups)
        )

    assert simulate(Mesh({"dp": 2}), run)[1] == pytest.approx(60000 * 2**0.5, rel=1e-3)


def test_gradients_spread_over_ranks_themselves():
    """A DTensor's own part is what is summed, measured and scaled."""

    class Spread(Tensor):
        def to_local(self) -> Tensor:
            return self.as_subclass(Tensor)

    def run(rank: int, groups: Groups) -> tuple[list[float], float]:
        each = parameter(2, None)
        each.grad = torch.full((2,), float(rank + 1), dtype=torch.float64).as_subclass(Spread)
        marked = [ParameterGradient("a", each, ("tp",))]
        reduce_gradients(marked, groups)
        return each.grad.tolist(), float(gradient_norm(marked, groups))

    assert list(simulate(Mesh({"tp": 2}), run)) == [([3, 3], pytest.approx(18**0.5))] * 2


def overlapping(rank: int) -> ParameterGradient:
    """Rows 2 and 3 and columns 0 of a part of 5 x 2 are the same on both ranks of tp and of cp."""
    made = nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    made.grad = torch.arange(10, dtype=torch.float64).view(5, 2) + 100 * rank
    spans = (Overlap("tp", 0, ((2, 2),)), Overlap("cp", 1, ((0, 1),)))
    return ParameterGradient("w", made, ("dp",), ("tp", "cp"), overlaps=spans)


def test_overlaps_alone_are_summed_over_what_splits_the_rest():
    def run(rank: int, groups: Groups) -> Tensor:
        marked = overlapping(rank)
        reduce_gradients([marked], groups)
        return marked.parameter.grad

    found = list(simulate(Mesh({"cp": 2, "tp": 2}), run))
    own = [torch.arange(10, dtype=torch.float64).view(5, 2) + 100 * rank for rank in range(4)]
    want = [each.clone() for each in own]
    for cp in range(2):
        for tp in range(2):
            want[2 * cp + tp][:, :1] = own[tp][:, :1] + own[2 + tp][:, :1]
    columns = [each.clone() for each in want]
    for rank in range(4):
        first = rank // 2 * 2
        want[rank][2:4] = columns[first][2:4] + columns[first + 1][2:4]
    for mine, wanted in zip(found, want):
        assert torch.equal(mine, wanted)


def test_overlaps_count_once():
    def run(_: int, groups: Groups) -> Tensor:
        marked = overlapping(0)
        marked.parameter.grad = torch.ones(5, 2, dtype=torch.float64)
        return gradient_norm([marked], groups)

    for norm in simulate(Mesh({"cp": 2, "dp": 2, "tp": 2}), run):
        rows, columns = 3 * 2 + 2, 1 * 2 + 1
        assert float(norm) == pytest.approx((rows * columns) ** 0.5, rel=1e-12)


def test_an_overlap_of_a_missing_gradient_is_zero_elsewhere():
    def run(rank: int, groups: Groups) -> Tensor:
        made = parameter(3, None if rank else 1.0)
        reduce_gradients(
            [ParameterGradient("w", made, (), ("tp",), overlaps=(Overlap("tp", 0, ((1, 1),)),))], groups
        )
        return made.grad

    found = simulate(Mesh({"tp": 2}), run)
    assert [each.tolist() for each in found] == [[1, 2, 3], [0, 2, 0]]


def test_an_overlap_of_a_gradient_that_is_spread_is_refused():
    class Spread(Tensor):
        def to_local(self) -> Tensor:
            return self.as_subclass(Tensor)[:1]

    def run(_: int, groups: Groups) -> None:
        made = parameter(4, None)
        made.grad = torch.ones(4, dtype=torch.float64).as_subclass(Spread)
        reduce_gradients(
            [ParameterGradient("w", made, (), ("tp",), overlaps=(Overlap("tp", 0, ((2, 2),)),))], groups
        )

    with pytest.raises(FxparError, match=r"a gradient of \[4\] is spread over ranks, which have \[1\] of it"):
        simulate(Mesh({"tp": 2}), run)
