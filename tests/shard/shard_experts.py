"""Models with experts, in float64, each captured once for all tests."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import transformers
from shard_case import Case
from shard_models import BATCH, FFN, LENGTH, VOCAB, WIDTH, tokens
from torch import Tensor, nn
from torch.nn import functional as F

EXPERTS, BEST, INNER = 4, 2, 16
_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "use_cache": False,
    "experts_implementation": "batched_mm",
    "num_experts_per_tok": BEST,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 8,
}
#: Name -> prefix of the classes, and what the configuration has beside the decoder's.
PUBLIC: dict[str, tuple[str, dict[str, Any]]] = {
    "selected": ("Mixtral", {"num_local_experts": EXPERTS}),
    "shared": (
        "Qwen2Moe",
        {"num_experts": EXPERTS, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": 32},
    ),
    "in groups": (
        "DeepseekV3",
        {
            **_LATENT,
            "n_routed_experts": EXPERTS,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": INNER,
            "first_k_dense_replace": 1,
        },
    ),
    "interleaved": ("GptOss", {"num_local_experts": EXPERTS, "head_dim": 8, "sliding_window": 8}),
}


class Dense(nn.Module):
    """Every expert for every token, weighted: a stack of weights in one product, or a list of modules."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.tokens, self.norm = how, nn.Embedding(VOCAB, WIDTH), nn.RMSNorm(WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS)
        if how == "modules":
            pairs = [(nn.Linear(WIDTH, FFN), nn.Linear(FFN, WIDTH)) for _ in range(EXPERTS)]
            self.experts = nn.ModuleList(nn.Sequential(up, nn.GELU(), down) for up, down in pairs)
        else:
            self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, FFN))
            self.down = nn.Parameter(torch.randn(EXPERTS, FFN, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        y = self.norm(x)
        weights = self.router(y).softmax(-1)
        if self.how == "modules":
            return x + sum(weights[..., i, None] * expert(y) for i, expert in enumerate(self.experts))
        if self.how == "bmm":
            flat = y.reshape(1, -1, WIDTH).expand(EXPERTS, -1, -1)
            made = torch.bmm(F.gelu(torch.bmm(flat, self.up)), self.down)
            return x + torch.einsum("te,eth->th", weights.flatten(0, 1), made).view_as(x)
        inner = F.gelu(torch.einsum("bsh,ehf->bsef", y, self.up))
        return x + (torch.einsum("bsef,efh->bseh", inner, self.down) * weights[..., None]).sum(2)


class Dispatched(nn.Module):
    """Tokens sent to places of experts by a mask, and back by another (GShard, Switch)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(VOCAB, WIDTH), nn.RMSNorm(WIDTH)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, FFN))
        self.down = nn.Parameter(torch.randn(EXPERTS, FFN, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        y = self.norm(x).flatten(0, 1)
        gates = self.router(y).softmax(-1)
        mask = F.one_hot(gates.argmax(-1), EXPERTS)
        place = (mask.cumsum(0) - 1) * mask
        sent = (F.one_hot(place, BATCH * LENGTH // 2)[..., : BATCH * LENGTH // 2] * mask[..., None]).to(
            y.dtype
        )
        back = sent * (gates * mask).sum(-1)[:, None, None]
        inner = F.relu(torch.einsum("ecm,emf->ecf", torch.einsum("sec,sm->ecm", sent, y), self.up))
        made = torch.einsum("ecf,efm->ecm", inner, self.down)
        return x + torch.einsum("sec,ecm->sm", back, made).view_as(x)


class Interleaved(nn.Module):
    """A gated feed-forward whose gates and values alternate in one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(VOCAB, WIDTH), nn.RMSNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * FFN), nn.Linear(FFN, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        both = self.up(self.norm(x))
        return x + self.down(F.silu(both[..., ::2]) * both[..., 1::2])


_OWN = {
    "modules": partial(Dense, "modules"),
    "bmm": partial(Dense, "bmm"),
    "einsum": partial(Dense, "einsum"),
    "dispatched": Dispatched,
    "alternating": Interleaved,
}


def public(name: str, **more: Any) -> nn.Module:
    """One of the public classes, in single precision."""
    torch.manual_seed(1)
    prefix, given = PUBLIC[name]
    config = getattr(transformers, f"{prefix}Config")(**{**_DECODER, **given, **more})
    return getattr(transformers, f"{prefix}ForCausalLM")(config)


@cache
def case(name: str) -> Case:
    """A model with its inputs."""
    if name in _OWN:
        torch.manual_seed(1)
        return Case(_OWN[name]().double(), {"ids": tokens()})
    return Case(public(name).double(), inputs())


@cache
def grouped(name: str) -> Case:
    """A public model that sorts tokens by expert, held against itself without sorting."""
    made = Case(public(name, experts_implementation="grouped_mm").double(), inputs())
    made.model.config._experts_implementation = "batched_mm"
    return made


@cache
def auxiliary(name: str) -> Case:
    """A public model whose loss has a term that balances the experts."""
    return Case(public(name, output_router_logits=True).double(), inputs())


@cache
def single(name: str) -> Case:
    """A public model as it is made: in single precision, with its default kernel."""
    return Case(public(name, experts_implementation=None), inputs(), wide=False)


def inputs() -> dict[str, Tensor]:
    """Tokens and labels, of which some do not count."""
    labels = tokens()
    labels[0, 2:9] = -100
    return {"input_ids": tokens(), "labels": labels}
