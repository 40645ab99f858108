"""The split cross entropy against torch's, values and gradients, in float64 to 1e-12."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxpar import runtime
from fxpar.errors import RankError
from fxpar.mesh import Mesh
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.lockstep import simulate

CLASSES = 12


def problem(shape: tuple[int, ...] = (7,)) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets with some ignored, class weights."""
    logits = torch.randn(shape[0], CLASSES, *shape[1:], dtype=torch.float64) * 5
    target = torch.randint(0, CLASSES, shape)
    target.view(-1)[::3] = -100
    return logits, target, torch.rand(CLASSES, dtype=torch.float64)


def whole(logits: Tensor, target: Tensor, grad: Tensor | None = None, **options) -> tuple[Tensor, Tensor]:
    """torch's loss and the gradient of the logits."""
    logits = logits.detach().clone().requires_grad_()
    loss = F.cross_entropy(logits, target, **options)
    loss.backward(grad)
    return loss.detach(), logits.grad


def split(
    ranks: int, logits: Tensor, target: Tensor, grad: Tensor | None = None, **options
) -> tuple[Tensor, Tensor]:
    """The same with the classes split over ranks."""

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        x = logits.chunk(ranks, 1)[rank].detach().clone().requires_grad_()
        loss = runtime.cross_entropy(x, target, classes=groups.tp, **options)
        loss.backward(grad)
        return loss.detach(), x.grad

    results = simulate(Mesh({"tp": ranks}), run)
    assert all(torch.equal(loss.nan_to_num(), results[0][0].nan_to_num()) for loss, _ in results)
    return results[0][0], torch.cat([gradient for _, gradient in results], 1)


def close(got, want, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(7,), (3, 2, 2)])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_classes_split(ranks, shape, reduction, smoothing, weighted):
    logits, target, weight = problem(shape)
    options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weight if weighted else None}
    grad = torch.rand(shape, dtype=torch.float64) if reduction == "none" else None
    close(split(ranks, logits, target, grad, **options), whole(logits, target, grad, **options))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tokens_and_classes_split(smoothing, weighted):
    """The losses add up to the mean over all tokens, though the ranks count different numbers, one of them none."""
    logits, target, weight = problem((8,))
    target[4:] = torch.tensor([-100, -100, -100, -100])
    options = {"label_smoothing": smoothing, "weight": weight if weighted else None}

    def run(_: int, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
        dp, tp = groups.index("dp"), groups.index("tp")
        x = logits.chunk(2, 0)[dp].chunk(2, 1)[tp].clone().requires_grad_()
        part = target.chunk(2)[dp]
        count = runtime.count_targets(target, options["weight"])
        shard = weight.chunk(2)[tp] if weighted else None
        close(runtime.count_targets(part, shard, classes=groups.tp, tokens=groups.dp), count)
        loss = runtime.cross_entropy(x, part, classes=groups.tp, count=count, **{**options, "weight": shard})
        loss.backward()
        return loss.detach(), runtime.all_reduce(loss.detach(), groups.dp), x.grad

    results = simulate(Mesh({"dp": 2, "tp": 2}), run)
    loss, grad = whole(logits, target, **options)
    assert [float(part) for part, _, _ in results[2:]] == [0, 0]
    for _, total, _ in results:
        close(total, loss)
    close(torch.cat([torch.cat([r[2] for r in results[i : i + 2]], 1) for i in (0, 2)]), grad)


def test_one_token():
    logits, target, weight = torch.randn(CLASSES), torch.tensor(5), torch.rand(CLASSES)

    def run(rank: int, groups: Groups) -> Tensor:
        return runtime.cross_entropy(logits.chunk(2)[rank], target, weight, classes=groups.tp)

    close(simulate(Mesh({"tp": 2}), run)[1], F.cross_entropy(logits, target, weight), 1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_everything_ignored(reduction, smoothing):
    logits, target, weight = problem()
    target[:] = -100
    options = {"reduction": reduction, "weight": weight, "label_smoothing": smoothing}
    grad = torch.ones(7, dtype=torch.float64) if reduction == "none" else None
    loss, gradient = split(2, logits, target, grad, **options)
    want, want_gradient = whole(logits, target, grad, **options)
    torch.testing.assert_close(loss, want, equal_nan=True)
    close(gradient, want_gradient)
    assert torch.isnan(loss).all() == (reduction == "mean")


def test_another_ignored_index_and_no_tokens():
    logits, target, _ = problem()
    target[target == -100] = 3
    close(split(2, logits, target, ignore_index=3), whole(logits, target, ignore_index=3))
    loss, gradient = split(2, logits[:0], target[:0], reduction="sum")
    assert (float(loss), gradient.shape) == (0, (0, CLASSES))


@pytest.mark.parametrize(
    "logits", [torch.full((2, 4), -1e30), torch.tensor([[1e4, -1e4, 9999.0, -torch.inf]]).repeat(2, 1)]
)
def test_extreme_logits(logits):
    target = torch.tensor([0, 2])
    close(split(2, logits, target), whole(logits, target), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    logits, target, _ = problem()
    logits = logits.to(dtype)
    loss, gradient = split(2, logits, target)
    want, want_gradient = whole(logits.float(), target)
    assert loss.dtype == gradient.dtype == dtype
    close(loss, want.to(dtype), 1e-5)
    close(gradient, want_gradient.to(dtype), 1e-5)


def test_autocast_gives_float32():
    logits, target, _ = problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert runtime.cross_entropy(logits.bfloat16(), target).dtype == torch.float32


def test_only_two_small_reductions():
    logits, target, _ = problem()

    def run(rank: int, groups: Groups) -> None:
        x = logits.chunk(2, 1)[rank].clone().requires_grad_()
        runtime.cross_entropy(x, target, classes=groups.tp).backward()

    counter = simulate(Mesh({"tp": 2}), run).counters[0]
    assert counter.calls("all_reduce", phase="forward") == counter.calls() == 2
    assert counter.bytes() == 3 * target.numel() * 8


def test_gradcheck_and_registration():
    logits, target, weight = problem((3,))
    groups = alone(Mesh({"tp": 1}))
    logits.requires_grad_()
    target[target == -100] = 2
    for arguments in [("mean", -100, 0.1, groups.tp, None), ("none", 2, 0.0, None, torch.tensor(3))]:
        torch.autograd.gradcheck(
            lambda x, a=arguments: torch.ops.fxpar.cross_entropy(x, target, weight, *a), (logits,)
        )
        for op in (torch.ops.fxpar.cross_entropy_forward, torch.ops.fxpar.cross_entropy):
            torch.library.opcheck(op.default, (logits, target, weight, *arguments))
    torch.library.opcheck(torch.ops.fxpar.count_targets.default, (target, weight, -100, None, groups.tp))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: runtime.cross_entropy(x, t + 99), "a target is not within the 12 rows or classes"),
        (lambda x, t: runtime.cross_entropy(x, t, reduction="max"), "reduction='max' is none of none, mean, sum"),
        (lambda x, t: runtime.cross_entropy(x, t[1:]), r"targets of shape \[6\] for logits of shape \[7, 12\]"),
        (lambda x, _: runtime.cross_entropy(x, x), "targets must be class indices, not probabilities"),
        (lambda x, t: runtime.cross_entropy(x, t, torch.ones(5)), "5 class weights for 12 of 12 classes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    logits, target, _ = problem()
    with pytest.raises(RuntimeError, match=message):
        call(logits, target)


def test_a_wrong_target_is_refused_on_every_rank():
    with pytest.raises(RankError, match="a target is not within the 12 rows or classes"):
        split(2, torch.randn(1, CLASSES), torch.tensor([CLASSES]))


@pytest.mark.parametrize("ranks", [5, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_classes_that_do_not_divide(reduction, weighted, smoothing, ranks):
    """12 over 5 or 8 ranks, of which some have padding only: it may hold anything, and has no gradient."""
    logits, target, weight = problem((9,))
    options = {"label_smoothing": smoothing, "reduction": reduction}
    grad = torch.rand(9, dtype=torch.float64) if reduction == "none" else None
    part = -(-CLASSES // ranks)
    padded = F.pad(logits, (0, part * ranks - CLASSES), value=torch.nan)
    shares = F.pad(weight, (0, part * ranks - CLASSES)).split(part)

    def run(rank: int, groups: Groups) -> tuple[Tensor, Tensor]:
        x = padded.split(part, 1)[rank].clone().requires_grad_()
        given = [None] if not weighted else [weight, shares[rank]]
        losses = [
            runtime.cross_entropy(x, target, w, classes=groups.tp, whole=CLASSES, **options) for w in given
        ]
        assert torch.equal(losses[0], losses[-1])
        losses[0].backward(grad)
        return losses[0].detach(), x.grad

    results = simulate(Mesh({"tp": ranks}), run)
    gradient = torch.cat([each for _, each in results], 1)
    assert not gradient[:, CLASSES:].any()
    expected = whole(logits, target, grad, weight=weight if weighted else None, **options)
    close((results[0][0], gradient[:, :CLASSES]), expected)


@pytest.mark.parametrize("wrong", [12, 14])
def test_padding_is_no_class(wrong):
    def run(_: int, groups: Groups) -> None:
        runtime.cross_entropy(torch.randn(1, 3), torch.tensor([wrong]), classes=groups.tp, whole=12)

    with pytest.raises(RankError, match="a target is not within the 12 rows or classes"):
        simulate(Mesh({"tp": 5}), run)
