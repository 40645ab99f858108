"""A transformers decoder in stages as one makes them with torch's `pipeline()` and `Schedule1F1B`.

After https://docs.pytorch.org/docs/stable/distributed.pipelining.html: marks at the layers, one microbatch as example,
the loss as a function of what the last stage gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import Schedule1F1B, SplitPoint, pipeline


class _Logits(nn.Module):
    """The model without its loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The logits, [batch, sequence, vocabulary]."""
        logits: torch.Tensor = self.model(input_ids=input_ids).logits
        return logits


@dataclass
class TorchStep:
    """A training step of torch's pipeline on this rank."""

    run: Callable[[], torch.Tensor]
    """Returns the loss of the batch on every rank."""
    module: nn.Module

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients that are on this rank, by the model's names."""
        named = self.module.named_parameters()
        return {name.removeprefix("model."): p.grad for name, p in named if p.grad is not None}


def torch_step(model: Any, batch: dict[str, torch.Tensor], microbatches: int) -> TorchStep:
    """Cut a model evenly at its layers, one stage a rank."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    layers, size = model.config.n_layer, len(batch["input_ids"]) // microbatches
    marks = {
        f"model.transformer.h.{layers * place // ranks}": SplitPoint.BEGINNING for place in range(1, ranks)
    }
    pipe = pipeline(_Logits(model), (batch["input_ids"][:size],), split_spec=marks)
    stage = pipe.build_stage(rank, torch.device("cpu"))
    schedule = Schedule1F1B(stage, microbatches, loss_fn=_loss)
    parameters = list(stage.submod.parameters())

    def run() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        losses: list[torch.Tensor] = []
        if rank == 0:
            schedule.step(batch["input_ids"], target=batch["labels"], losses=losses, return_outputs=False)
        else:
            schedule.step(target=batch["labels"], losses=losses, return_outputs=False)
        loss = torch.stack(losses).mean().detach() if losses else torch.zeros(())
        dist.all_reduce(loss)
        return loss

    return TorchStep(run, stage.submod)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
