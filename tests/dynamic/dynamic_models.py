"""Small models with sizes in their code, and a partition of each run at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxpar.capture.precision import Float64
from fxpar.checkpoint.weights import TensorWeights
from fxpar.dynamic.capture import captured
from fxpar.parts import ModelWeights, boxes, reader
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.assemble import assemble
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.manifest import Manifest

#: Makes a batch of the given sizes.
Maker = Callable[..., dict[str, Tensor]]


def partitioned(model: nn.Module, batch: Mapping[str, Any], plan: Plan) -> Partition:
    """Capture in float64 throughout, and split."""
    with Float64():
        return split(captured(model, (), batch, plan), plan)


def worst_error(
    model: nn.Module, made: Partition, batches: Sequence[Mapping[str, Any]], loss_of: Callable[[Any], Tensor]
) -> float:
    """Step on batches of several sizes on one set of ranks: the worst error of a loss or of any rank's gradients."""
    manifest = Manifest.from_json(made.manifest.to_json())
    assert manifest == made.manifest
    wholes = [_whole(model, batch, loss_of) for batch in batches]
    weights = ModelWeights(made.program)

    def run(_rank: int, groups: Any) -> float:
        module = assemble(manifest, made.texts, groups, reader(made, groups.rank, weights), device="cpu")
        worst = 0.0
        for batch, (loss, gradients) in zip(batches, wholes):
            module.zero_grad()
            worst = max(worst, float((module.step(batch) - loss).abs()))
            for name, parameter in module.named_parameters():
                name = made.program.ties.get(name, name)
                whole = gradients[name]
                mine = TensorWeights({name: whole}).read(name, boxes(made, name, groups.coordinate))
                found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                worst = max(worst, float((found - mine).abs().max()))
        return worst

    return max(simulate(made.mesh, run))


def _whole(
    model: nn.Module, batch: Mapping[str, Any], loss_of: Callable[[Any], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    with Float64():
        loss = loss_of(model(**batch))
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    zeros = (torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters))
    return loss.detach(), dict(zip(names, zeros))


class Attention(nn.Module):
    """Attention with whatever mask is given, and a loss."""

    def __init__(self, mask: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.tokens, self.mask = nn.Embedding(64, 16), mask
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        batch, sequence = ids.shape
        query, key, value = self.qkv(self.tokens(ids)).view(batch, sequence, 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = nn.functional.scaled_dot_product_attention(query, key, value, self.mask(ids))
        x = self.out(x.transpose(1, 2).reshape(batch, sequence, 16))
        return nn.functional.cross_entropy(x.flatten(0, 1), ids.flatten())
