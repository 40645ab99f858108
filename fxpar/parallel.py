"""`fxpar.parallelize`: the part of a model that this process runs, made in place of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fxpar.capture.program import Program
from fxpar.checkpoint.weights import Weights
from fxpar.dynamic.capture import captured
from fxpar.emit.folder import layout
from fxpar.errors import RankError
from fxpar.parts import ModelWeights, reader
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.agree import check_alike, fingerprint
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.processes import connect, current_device
from fxpar.runtime.rank import Rank


def parallelize(
    model: nn.Module,
    plan: Plan,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    weights: Weights | None = None,
    device: torch.device | str | None = None,
) -> Rank:
    """Make the module that this process runs of a model: its part of the weights, and the work of its rank.

    `args` and `kwargs` are example inputs. Every process calls this with the same model, plan and examples, and later
    gives its module the same whole batches, of the sizes of the example but for the plan's dynamic axes; it gets the
    outputs of the whole model, in the type that the model returns. `backward()` and `module.step(batch)` leave
    gradients complete on every rank; with several stages only `step` runs. `torch.autograd.grad` bypasses the
    parameters and with them these sums, and torch's `clip_grad_norm_` knows a rank's slices only: use
    `module.clip_gradients_`. Names in `state_dict` are those of the model. `weights` are read where the model lies on
    the meta device. The model is left as it is, and is not needed afterwards.

        with fxpar.together():  # or a process group of your own
            module = fxpar.parallelize(model, fxpar.Plan(tp=2), kwargs=batch)
            module(**batch).loss.backward()

    `device` defaults to this process's accelerator, or the CPU. Raises RankError where the process group is missing or
    of another size than the plan's mesh, or where ranks were given different models (told by the ends of their
    tensors); what `capture` and `split` raise; CheckpointError for tensors without values.
    """
    check_world(plan)
    place = torch.device(device) if device is not None else current_device()
    program = captured(model, args, kwargs or {}, plan)
    partition = split(program, plan)
    groups = _groups(partition, place)
    read = reader(partition, groups.rank, ModelWeights(program, weights))
    rank = assemble(
        partition.manifest,
        partition.texts,
        groups,
        read,
        device=place,
        out_spec=program.out_spec,
        leaves=program.leaves,
    )
    if partition.mesh.world > 1:
        check_alike(rank, _fingerprints(program, partition))
    index = layout(partition)
    rank.layout = lambda: index
    return rank


def _fingerprints(program: Program, partition: Partition) -> dict[str, str]:
    """What tells this model and plan from others; of tensors without values, their shapes."""
    held = {name: t for name, t in program.tensors.items() if not t.is_meta}
    return {"the graph": partition.manifest.hash} | {
        name: fingerprint(tensor.detach()) for name, tensor in held.items()
    }


def check_world(plan: Plan) -> None:
    """Raise RankError unless there are as many processes as the plan has ranks; one rank needs no process group."""
    world = plan.mesh.world
    mesh = ", ".join(f"{dim} {size}" for dim, size in plan.mesh.sizes.items() if size > 1)
    if world > 1 and not dist.is_initialized():
        raise RankError(
            f"the plan has {world} ranks ({mesh}), and there is no process group",
            details=[
                f"start the script with torchrun --nproc-per-node {world} SCRIPT.py",
                "and call fxpar.parallelize inside of `with fxpar.together():`",
            ],
        )
    running = dist.get_world_size() if dist.is_initialized() else 1
    if running != world:
        what = f"the plan has {world} ranks ({mesh or 'all mesh dims are 1'}), and {running} processes run"
        raise RankError(what, details=[f"torchrun --nproc-per-node {world} SCRIPT.py"])


def _groups(partition: Partition, device: torch.device) -> Groups:
    if partition.mesh.world == 1:
        return alone(partition.mesh)
    return connect(partition.mesh, partition.manifest.groups, device=device)
