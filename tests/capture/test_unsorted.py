"""Rows sorted for a grouped product are put back in the order of the tokens; what is not put back stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpar.capture import capture
from fxpar.capture.interpret import run
from fxpar.errors import CaptureError

EXPERTS, WIDTH, TOKENS, BEST = 4, 8, 6, 2


class Sorted(nn.Module):
    """Tokens sorted by expert for `torch._grouped_mm`, then `finish` with what is sorted."""

    def __init__(self, finish: Callable[..., Tensor], end: int = EXPERTS - 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.finish, self.end = nn.Linear(WIDTH, EXPERTS), finish, end
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * WIDTH))
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        weights, best = self.router(x).softmax(-1).topk(BEST)
        ids, perm = torch.sort(best.reshape(-1))
        ends = torch.histc(ids.float(), EXPERTS, 0, self.end).cumsum(0).to(torch.int32)
        gate, value = torch._grouped_mm(x[perm // BEST], self.up, ends).chunk(2, -1)
        made = torch._grouped_mm(gate.sigmoid() * value, self.down, ends)
        return self.finish(made * weights.reshape(-1)[perm, None], perm, ids)


def put_back(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(len(perm))
    return made[inverse].view(TOKENS, BEST, WIDTH).sum(1)


def sorted_back(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    return made[perm.argsort()].view(TOKENS, BEST, WIDTH).sum(1)


def added_back(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    return torch.zeros(TOKENS, WIDTH, dtype=made.dtype).index_add(0, perm // BEST, made)


def scattered_back(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    index = (perm // BEST).reshape(-1, 1).expand(-1, WIDTH)
    return torch.ones(TOKENS, WIDTH, dtype=made.dtype).scatter_add(0, index, made)


def added_twice(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    return torch.zeros(TOKENS, WIDTH, dtype=made.dtype).index_add(0, perm // BEST, made, alpha=2)


def added_elsewhere(made: Tensor, perm: Tensor, _: Tensor) -> Tensor:
    return torch.zeros(TOKENS, WIDTH, dtype=made.dtype).index_add(0, perm // 3, made)


def left_sorted(made: Tensor, _: Tensor, ids: Tensor) -> Tensor:
    return made.cumsum(0) * ids[:, None]


@pytest.mark.parametrize(
    ("finish", "end", "products"),
    [
        (put_back, EXPERTS - 1, ["fxpar.expert_linear.default"] * 2),
        (sorted_back, EXPERTS - 1, ["fxpar.expert_linear.default"] * 2),
        (added_back, EXPERTS - 1, ["fxpar.expert_linear.default"] * 2),
        (scattered_back, EXPERTS - 1, ["fxpar.expert_linear.default"] * 2),
        (added_twice, EXPERTS - 1, ["aten._grouped_mm.default"] * 2),
        (added_elsewhere, EXPERTS - 1, ["aten._grouped_mm.default"] * 2),
        (left_sorted, EXPERTS - 1, ["aten._grouped_mm.default"] * 2),
        (put_back, EXPERTS, ["aten._grouped_mm.default"] * 2),
    ],
)
def test_what_is_put_back_is_never_sorted(
    finish: Callable[..., Tensor], end: int, products: list[str]
) -> None:
    model, x = Sorted(finish, end).bfloat16(), torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)
    program = capture(model, (x,))
    names = [str(node.target) for node in program.graph.nodes]
    assert [
        name for name in names if name in ("fxpar.expert_linear.default", "aten._grouped_mm.default")
    ] == products
    assert ("aten.sort.default" in names) == (products[0] != "fxpar.expert_linear.default")
    (found,) = run(program, {"x": x})
    torch.testing.assert_close(found, model(x), atol=0.02, rtol=0.02)


class Counted(Sorted):
    """It counts by ones where each expert was chosen, and multiplies by weights in a dim of their own."""

    def __init__(self, ones: Callable[[Tensor], Tensor]) -> None:
        super().__init__(added_back)
        self.ones = ones

    def forward(self, x: Tensor) -> Tensor:
        weights, best = self.router(x).softmax(-1).topk(BEST)
        perm = torch.argsort(best.view(-1), stable=True)
        ends = self.ones(best).cumsum(0, dtype=torch.int32)
        made = torch._grouped_mm(x[perm // BEST], self.up, ends)[:, :WIDTH]
        made = torch._grouped_mm(made.contiguous(), self.down, ends)
        return self.finish(made * weights.view(-1)[perm].reshape(-1, 1), perm, best)


def hot(best: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(best, EXPERTS).sum((0, 1))


def put(best: Tensor) -> Tensor:
    return torch.zeros(TOKENS, EXPERTS).scatter(-1, best, 1.0).sum(0)


def only_first(best: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(best[:, :1], EXPERTS).sum((0, 1))


def of_others(best: Tensor) -> Tensor:
    return torch.zeros(TOKENS, EXPERTS).scatter(-1, best // 2, 1.0).sum(0)


def as_many_each(best: Tensor) -> Tensor:
    return torch.full((EXPERTS,), best.numel() // EXPERTS)


@pytest.mark.parametrize(
    ("ones", "known"),
    [(hot, True), (put, True), (only_first, False), (of_others, False), (as_many_each, False)],
)
def test_ways_to_count(ones: Callable[[Tensor], Tensor], known: bool) -> None:
    model, x = Counted(ones).bfloat16(), torch.randn(TOKENS, WIDTH, dtype=torch.bfloat16)
    program = capture(model, (x,))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("fxpar.expert_linear.default") == (2 if known else 0)
    if known:
        assert "aten.argsort.stable" not in names
        (found,) = run(program, {"x": x})
        torch.testing.assert_close(found, model(x), atol=0.02, rtol=0.02)


def test_a_loop_over_the_experts_that_were_hit_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        experts_implementation="eager",
    )
    with pytest.raises(CaptureError) as error:
        capture(transformers.MixtralForCausalLM(config), (torch.zeros(1, 4, dtype=torch.int64),))
    text = str(error.value)
    assert text.startswith("`MixtralForCausalLM` cannot be captured: modeling_mixtral.py:")
    assert "in forward: for expert_idx in expert_hit:\n" in text
    advice = "build the model with experts_implementation='batched_mm' or 'grouped_mm', or keep it whole: --opaque "
    assert text.splitlines()[-1].strip() == f"{advice}'model.layers.*.mlp.experts'"
