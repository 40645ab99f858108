"""A pipeline as one of its ranks sees it: a step over microbatches, and an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxpar.errors import PlanError, RankError
from fxpar.pipeline.orders import Order, forward_orders, orders, with_transfers
from fxpar.pipeline.spec import StageSpec
from fxpar.runtime.engine import Engine, Job, Microbatch, Recorder
from fxpar.runtime.groups import Groups
from fxpar.runtime.localengine import LocalEngine
from fxpar.schedule import SCHEDULES, places

Outputs = list[tuple[Any, ...]]
Specs = Sequence[StageSpec]


class Pipeline:
    """Runs the stages of this rank; every rank of the `pp` group does the same calls with the same microbatches.

    `modules` and `specs` are the rank's stages, in order. A module takes the received values in order and the batch
    inputs by name, and returns the tuple of values to send or, on the last stage, of the model's outputs. `groups` are
    this rank's, with the mesh dim `pp` and a transport (none are needed for a single stage). Processes run torch's
    pipelining; the simulator, and a single stage, our own.

        loss, outputs = pipeline.step([{"input_ids": ids, "labels": labels} for ids, labels in microbatches])

    Raises `PlanError` for a schedule that does not exist, RankError for stages that are not this rank's.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        specs: Specs,
        groups: Groups | None = None,
        *,
        schedule: str = "1f1b",
    ) -> None:
        if schedule not in SCHEDULES:
            raise PlanError(
                f"there is no schedule `{schedule}`", details=[f"there are {', '.join(SCHEDULES)}"]
            )
        self.specs, self.schedule = specs, schedule
        self.recorder: Recorder | None = None
        """Records when this rank runs what, if it is given."""
        self._groups = groups
        self._device = _device(modules)
        self._ranks, self._place = (1, 0) if groups is None else _place(groups)
        self._virtual = specs[0].count // self._ranks
        self._stages = places(schedule, self._ranks, self._virtual)
        _check(specs, self._stages, self._place, self._ranks)
        self._engine = self._made({spec.index: module for spec, module in zip(specs, modules)})

    @property
    def has_last(self) -> bool:
        """Whether this rank runs the last stage, and so has the model's outputs."""
        return any(spec.is_last for spec in self.specs)

    def step(
        self,
        microbatches: Sequence[Microbatch],
        specs: Sequence[Specs] | None = None,
        *,
        everywhere: bool = False,
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        """Run the microbatches forward and backward; gradients add up in the parameters.

        Each microbatch holds all inputs by name. `specs` are the rank's stages as each microbatch has them, where
        sizes differ from those that the pipeline was made with. The loss is normalised over the whole batch, so the
        microbatches' losses are summed. Returns that sum and the outputs of each microbatch, without gradients: where
        the last stage is; elsewhere None, or with `everywhere` the loss too. Raises `RankError` if there is no loss.
        """
        if self.specs[0].loss is None:
            outputs = ", ".join(self.specs[0].outputs)
            raise RankError("there is no loss to step on", details=[f"outputs: {outputs}"])
        return self._run(microbatches, specs, True, everywhere)

    def evaluate(
        self,
        microbatches: Sequence[Microbatch],
        specs: Sequence[Specs] | None = None,
        *,
        everywhere: bool = False,
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        """Run the microbatches forward, without gradients. Returns what `step` does; no loss if the model has none."""
        return self._run(microbatches, specs, False, everywhere)

    def _run(
        self,
        microbatches: Sequence[Microbatch],
        specs: Sequence[Specs] | None,
        training: bool,
        everywhere: bool,
    ) -> tuple[torch.Tensor | None, Outputs | None]:
        if not microbatches:
            raise PlanError("a pipeline needs one microbatch at least")
        count = len(microbatches)
        job = Job(microbatches, specs or [self.specs] * count, self._order(count, training), training)
        results = self._engine.run(job, self.recorder)
        losses = [loss for _, loss in sorted(results.losses.items())]
        loss = torch.stack(losses).sum() if losses else None
        if everywhere and self.specs[0].loss is not None and self._ranks > 1:
            loss = self._spread(loss)
        outputs = [output for _, output in sorted(results.outputs.items())]
        return loss, outputs if self.has_last else None

    def _order(self, microbatches: int, training: bool) -> Order:
        """What this rank does, in order."""
        make = orders if training else forward_orders
        planned = make(self.schedule, self._ranks, self._virtual, microbatches)
        return with_transfers(planned, self._stages)[self._place]

    def _spread(self, loss: torch.Tensor | None) -> torch.Tensor:
        """Give the last stage's loss to every rank."""
        spec = self.specs[0].loss
        assert spec is not None
        assert self._groups is not None
        if loss is None:
            loss = torch.zeros((), dtype=getattr(torch, spec.dtype), device=self._device)
        return self._groups.group("pp").all_reduce(loss)

    def _made(self, modules: dict[int, nn.Module]) -> Engine:
        if self._ranks == 1 or self._groups is None:
            return LocalEngine(modules)
        group = self._groups.group("pp")
        if (processes := getattr(group, "process_group", None)) is None:
            ranks = [group.ranks[place] for place in self._stages]
            return LocalEngine(modules, self._groups.transport, ranks)
        from fxpar.runtime.torchengine import TorchEngine  # slow to import, and not needed to simulate

        return TorchEngine(modules, self._stages, processes, self._device)


def _place(groups: Groups) -> tuple[int, int]:
    """The number of ranks along `pp`, and which of them this is."""
    if groups.mesh.sizes.get("pp", 1) == 1:
        return 1, 0
    group = groups.group("pp")
    return group.size, group.index


def _check(specs: Specs, stages: Sequence[int], place: int, ranks: int) -> None:
    own = [index for index, rank in enumerate(stages) if rank == place]
    given = [spec.index for spec in specs]
    if given != own:
        words = " and ".join(map(str, given))
        what = f"stage {words} of {specs[0].count} cannot run on rank {place} of {ranks} along pp"
        raise RankError(what, details=[f"that one runs {' and '.join(map(str, own))}"])


def _device(modules: Sequence[nn.Module]) -> torch.device:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return tensors[0].device if tensors else torch.device("cpu")
