"""Fused projections of which only some parts have the heads that are split: nothing more is moved for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from shard_case import Case, Run, rows
from shard_models import FFN, LAYERS, VOCAB, WIDTH, causal, phi3, tokens
from torch import Tensor, nn
from torch.nn import functional as F

import fxpar

EXACT = 1e-9
#: The loss reduces the largest logit, then the sum of exponentials and the target's logit.
LOSS = 2
_ENDS = {"use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def falcon(**config: Any) -> nn.Module:
    """Heads of queries, one of keys and one of values, in one dim; attention and feed-forward side by side."""
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    drop = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return transformers.FalconForCausalLM(transformers.FalconConfig(**sizes, **drop, **_ENDS, **config))


def bigcode(**config: Any) -> nn.Module:
    """One head of keys and values beside all heads of queries, with a bias."""
    sizes = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"loss_type": "ForCausalLM"}
    return transformers.GPTBigCodeForCausalLM(
        transformers.GPTBigCodeConfig(**sizes, **drop, **ends, **_ENDS, **config)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "falcon": lambda: falcon(multi_query=True),
    "falcon sequential": lambda: falcon(multi_query=True, parallel_attn=False, bias=True),
    "falcon grouped": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "bigcode": bigcode,
    "bigcode eager": lambda: bigcode(attn_implementation="eager"),
    "phi3": lambda: phi3(num_key_value_heads=2),
    "phi3 eager": lambda: phi3(num_key_value_heads=2, attn_implementation="eager"),
    "phi3 one head": lambda: phi3(num_key_value_heads=1),
}
#: How often a layer's input to split work is made ready, and its result completed.
FORWARD = {"falcon": 1, "falcon grouped": 1}
BACKWARD = {"falcon": 1}


@cache
def case(name: str) -> Case:
    torch.manual_seed(0)
    return Case(MODELS[name]().double().train(), causal())


def inserted(run: Run) -> Counter[str]:
    """How many of each runtime op stand in the graph; local slices are left out."""
    found = [
        str(node.target).split(".")[1] for node in run.sharded.graph.nodes if "fxpar." in str(node.target)
    ]
    return Counter(name for name in found if name not in ("slice", "count_targets", "keep_on_first"))


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("name", MODELS)
def test_no_activation_is_moved_for_keys_and_values(name: str, mesh: str) -> None:
    run = case(name).check(mesh, "whole_sequence")
    assert run.error < EXACT, str(run)
    forward, backward = FORWARD.get(name, 2) * LAYERS + 1, BACKWARD.get(name, 2) * LAYERS + 1
    assert inserted(run) == Counter(all_reduce=forward, sum_gradient=backward, embedding=1, cross_entropy=1)
    for counter in run.counters:
        assert (
            counter.calls(phase="forward") == counter.calls("all_reduce", phase="forward") == forward + LOSS
        )
        assert counter.calls(phase="backward") == counter.calls("all_reduce", phase="backward") == backward


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("name", MODELS)
def test_beside_a_split_sequence(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert run.error < EXACT, str(run)
    scatters, gathers = FORWARD.get(name, 2) * LAYERS + 1, BACKWARD.get(name, 2) * LAYERS + 1
    assert inserted(run) == Counter(reduce_scatter=scatters, all_gather=gathers, embedding=1, cross_entropy=1)


@pytest.mark.parametrize("mesh", ["cp2", "cp2 tp2", "dp2 tp4"])
@pytest.mark.parametrize("name", ["falcon", "falcon grouped", "bigcode", "phi3"])
def test_beside_other_mesh_dims(name: str, mesh: str) -> None:
    run = case(name).check(mesh)
    assert run.error < EXACT, str(run)
    assert not inserted(run)["all_to_all"]


def test_what_a_rank_has_of_one_head_of_keys() -> None:
    """cat[(heads 4) depth 8, depth, depth]: a head of the queries each, and the last 16 rows on all ranks."""
    run = case("bigcode").check("dp2 tp4", "whole_sequence")
    for part, shape in (("weight", (24, WIDTH)), ("bias", (24,))):
        laid = run.sharded.tensors[f"transformer.h.0.attn.c_attn.{part}"]
        assert (laid.split_over, laid.reduce, laid.local_shape) == (("tp",), ("dp",), shape)
        assert [(o.mesh_dim, o.dim, o.spans) for o in laid.overlaps] == [("tp", 0, ((8, 16),))]
    assert run.sharded.tensors["transformer.h.0.attn.c_proj.weight"].overlaps == ()


def test_pieces_of_a_mesh_dim() -> None:
    """Queries over both pieces of tp, keys and values over the first."""
    run = case("phi3").check("tp4", "whole_sequence")
    laid = run.sharded.tensors["model.layers.0.self_attn.qkv_proj.weight"]
    assert (laid.split_over, laid.local_shape) == (("tp1", "tp2"), (16, WIDTH))
    assert [(o.mesh_dim, o.dim, o.spans) for o in laid.overlaps] == [("tp2", 0, ((8, 8),))]


@pytest.mark.parametrize("name", ["falcon", "phi3", "falcon grouped"])
def test_nearly_all_is_split(name: str) -> None:
    assert case(name).shard("tp4").fraction > 0.9


@pytest.mark.parametrize(
    "plan",
    [
        fxpar.Plan(tp=2),
        fxpar.Plan(tp=4, sequence_parallel=False),
        fxpar.Plan(tp=2, pp=2),
        fxpar.Plan(cp=2, tp=2),
    ],
    ids=["tp2 sp", "tp4", "tp2 pp2", "cp2 tp2"],
)
@pytest.mark.parametrize("name", ["falcon", "bigcode", "phi3", "falcon grouped"])
def test_the_modules_that_are_made(name: str, plan: fxpar.Plan) -> None:
    """Loss, gradients, their norm and the parameters after a step, from emitted modules and the ranks' own files."""
    torch.manual_seed(0)
    report = fxpar.verify(MODELS[name]().double().train(), kwargs=causal(), plan=plan, simulate=True)
    assert report.ok, report.text()
    worst = max(report.loss_error, report.gradient_error, report.norm_error, report.parameter_error)
    assert worst < EXACT


class Fused(nn.Module):
    """Attention with one head of keys and values, from one weight; `use` does something to what the weight makes."""

    def __init__(
        self, use: Callable[[Tensor], Tensor], part: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.qkv = nn.Linear(WIDTH, WIDTH + 16)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)
        self.use, self.part = use, part

    def forward(self, ids: Tensor) -> Any:
        x = self.tokens(ids)
        q, k, v = self.use(self.qkv(x)).split([WIDTH, 8, 8], -1)
        heads = [t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        return (x, self.part(k)) if self.part else x


def fused(*uses: Callable[[Tensor], Tensor]) -> Case:
    torch.manual_seed(0)
    return Case(Fused(*uses).double(), {"ids": tokens()})


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize("use", [lambda x: x, lambda x: x.clamp(-0.1, 0.1), lambda x: (x * 2).sin()])
def test_what_treats_each_element_alone_takes_a_mixed_value(
    use: Callable[[Tensor], Tensor], table: str
) -> None:
    run = fused(use).check("tp2", table)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["qkv.weight"].overlaps[0].spans == ((16, 16),)


@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize(
    "use",
    [lambda x: x.softmax(-1), lambda x: F.layer_norm(x, (WIDTH + 16,)), lambda x: x + x.mean(-1, True)],
    ids=["softmax", "norm", "mean"],
)
def test_what_needs_all_of_it_leaves_it_whole(use: Callable[[Tensor], Tensor], table: str) -> None:
    run = fused(use).check("tp2", table)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["qkv.weight"].overlaps == ()
    assert run.sharded.tensors["qkv.weight"].split_over == ()


def test_random_numbers_are_not_drawn_for_a_mixed_value() -> None:
    """Every rank would draw other ones for what all of them have."""
    sharded = fused(lambda x: F.dropout(x, 0.5)).shard("tp2", "whole_sequence")
    assert sharded.tensors["qkv.weight"].overlaps == ()


@pytest.mark.parametrize("mesh", ["tp2", "tp4"])
@pytest.mark.parametrize("table", ["default", "whole_sequence"])
@pytest.mark.parametrize(
    "part",
    [lambda k: k, lambda k: k.sin(), lambda k: (k * k).sum(), lambda k: k.softmax(-1) + 1],
    ids=["as it is", "element by element", "summed", "normalised"],
)
def test_what_else_becomes_of_the_keys(part: Callable[[Tensor], Tensor], table: str, mesh: str) -> None:
    """Given out too, they are the same on all ranks, and their gradient counts once."""
    run = fused(lambda x: x, part).check(mesh, table)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["qkv.weight"].overlaps
    kept = inserted(run)["keep_gradient_on_first"]
    assert kept == 1 if table == "whole_sequence" else kept <= 1


def test_keys_that_meet_what_is_not_split() -> None:
    table = rows("heads: tp")
    run = fused(lambda x: x, lambda k: k @ torch.ones(8, 8, dtype=torch.float64)).check("tp2", table)
    assert run.error < EXACT, str(run)
    assert run.sharded.tensors["qkv.weight"].overlaps
