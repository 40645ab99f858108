"""A Llama-like transformers model over several ranks as one writes it with torch's `parallelize_module`.

After https://docs.pytorch.org/tutorials/intermediate/TP_tutorial.html: columns, then rows; the embedding and the loss
split over the vocabulary; with `sequence`, norms on slices of the sequence. `PrepareModuleInput` makes the input of
each block one DTensor, so that the gradients of q, k and v (gate and up) are added before they are summed over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)


def parallelized(model: Any, mesh: DeviceMesh, *, sequence: bool) -> Any:
    """Parallelise the model in place over a mesh of one dim."""
    between: Placement = Shard(1) if sequence else Replicate()
    whole: dict[str, ParallelStyle] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "lm_head": ColwiseParallel(input_layouts=between, output_layouts=Shard(-1), use_local_output=False),
    }
    if sequence:
        whole["model.norm"] = SequenceParallel()
    parallelize_module(model, mesh, whole)
    for layer in model.model.layers:
        parallelize_module(layer, mesh, _layer(between))
    return model


def _layer(between: Placement) -> dict[str, ParallelStyle]:
    styles: dict[str, ParallelStyle] = {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": between},
            desired_input_kwarg_layouts={"hidden_states": Replicate()},
        ),
        "mlp": PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),)),
        "self_attn.o_proj": RowwiseParallel(output_layouts=between),
        "mlp.down_proj": RowwiseParallel(output_layouts=between),
    }
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    styles |= {name: ColwiseParallel() for name in columns}
    if isinstance(between, Shard):
        styles |= {name: SequenceParallel() for name in ("input_layernorm", "post_attention_layernorm")}
    return styles


def step(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A function that runs forward and backward, with complete gradients, and returns the loss."""
    targets = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:].flatten()
    positions = torch.arange(batch["input_ids"].shape[1]).unsqueeze(0)
    parameters = list(model.parameters())

    def run() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        with loss_parallel():
            logits = model(input_ids=batch["input_ids"], position_ids=positions).logits
            loss: Any = F.cross_entropy(logits.flatten(0, 1), targets)
            loss.backward()
        for parameter in parameters:
            _complete(parameter)
        value: torch.Tensor = loss.detach().to_local()
        return value

    return run


def _complete(parameter: Any) -> None:
    """Bring a gradient to the placement of its parameter, as an optimizer has to: sum it, or take this rank's part."""
    if hasattr(parameter.grad, "placements") and parameter.grad.placements != parameter.placements:
        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
