"""Pipelines: how long ranks are idle under each schedule, and a training step against torch's `pipeline()`.

    python benchmarks/pipeline.py [--ranks 4] [--rounds 11] [--toy]

`idle` is of stages that wait instead of computing, the same time for a forward run and for each half of a backward
run: processes then do not share cores, and what is idle is the schedule's and the transfers'. Measured beside what
`fxpar schedule` says of these times; both are shares of the makespan.

`step` is forward and backward of a decoder over gloo. fxpar's schedules take turns with 1F1B of
torch.distributed.pipelining, whose `pipeline()` has cut the same model: layers evenly, as is usual, and for fxpar once
at the same layers (`same cut`) and once as it chooses. Loss and gradients are compared first.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import transformers
from machine import describe
from ratio import compare
from torch import nn
from torchpipe import torch_step

import fxpar
from fxpar.mesh import Mesh
from fxpar.pipeline.events import Event
from fxpar.pipeline.orders import orders, pairs
from fxpar.pipeline.simulation import simulate
from fxpar.pipeline.spec import StageSpec, ValueSpec
from fxpar.pipeline.times import Times
from fxpar.pipeline.usage import usage
from fxpar.runtime.engine import Recorder
from fxpar.runtime.groups import Groups
from fxpar.runtime.pipeline import Pipeline
from fxpar.runtime.processes import connect
from fxpar.schedule import SCHEDULES, places

MICROBATCHES = 8
WIDTH = 8


def main() -> None:
    """Start the ranks, or be one of them; rank 0 prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, action="append", help="2 and 4 without it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--part", choices=("idle", "step"), action="append", help="both without it")
    parser.add_argument("--schedule", choices=tuple(SCHEDULES), action="append", help="all without it")
    parser.add_argument(
        "--toy", action="store_true", help="short waits and a tiny model, to see that it runs"
    )
    options = parser.parse_args()
    if "RANK" not in os.environ:
        print(describe())
        sys.exit(max(_launch(ranks) for ranks in options.ranks or (2, 4)))
    dist.init_process_group("gloo")
    groups = connect(Mesh({"pp": dist.get_world_size()}), ["pp"], device="cpu")
    rounds = 2 if options.toy else options.rounds
    names = options.schedule or list(SCHEDULES)
    if "idle" in (options.part or ("idle",)):
        for row in _idle(names, groups, rounds, 0.001 if options.toy else 0.02):
            _say(row)
    if "step" in (options.part or ("step",)):
        for row in _steps(names, rounds, options.toy):
            _say(row)
    groups.close()
    dist.destroy_process_group()


def _launch(ranks: int) -> int:
    """Run this script once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    shared.setdefault("OMP_NUM_THREADS", "1")
    started = [
        subprocess.Popen([sys.executable, *sys.argv], env=shared | {"RANK": str(rank)})
        for rank in range(ranks)
    ]
    return max(abs(process.wait()) for process in started)


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


class _Wait(torch.autograd.Function):
    """Waits forward and backward, and changes nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
        """Wait `forward` seconds."""
        ctx.seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Wait `backward` seconds."""
        time.sleep(ctx.seconds)
        return gradients[0], None, None


def _wait(x: torch.Tensor, forward: float, backward: float) -> torch.Tensor:
    waited: torch.Tensor = _Wait.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return waited


class _Stage(nn.Module):
    """A stage that waits as long for a forward run, for gradients of what it received and for those of its weight."""

    def __init__(self, spec: StageSpec, seconds: float) -> None:
        super().__init__()
        self.weight, self.first = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.spec, self.seconds = spec, seconds

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give on what came."""
        x = x if self.spec.index else x + self.first
        x = _wait(x, self.seconds, self.seconds) + _wait(self.weight, 0.0, self.seconds)
        return (x.sum(),) if self.spec.is_last else (x,)


def _idle(names: list[str], groups: Groups, rounds: int, seconds: float) -> list[str]:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    head = f"\n{ranks} ranks, {MICROBATCHES} microbatches\n{'schedule':26}{'idle':>8}{'simulated':>12}"
    rows = [head]
    for name in names:
        virtual = SCHEDULES[name].least
        stages = places(name, ranks, virtual)
        specs = [_spec(index, stages) for index, place in enumerate(stages) if place == rank]
        modules = [_Stage(spec, seconds / virtual) for spec in specs]
        pipeline = Pipeline(modules, specs, groups, schedule=name)
        shares = [_share(pipeline, groups) for _ in range(rounds)]
        planned = orders(name, ranks, virtual, MICROBATCHES)
        together = pairs(name, ranks, virtual, MICROBATCHES)
        for paired in (False, True) if together else (False,):
            events = simulate(planned, stages, Times.uniform(len(stages)), together if paired else ())
            expected = float(usage(events).idle_of_makespan)
            words = (
                f"{median(shares):>7.1%}{expected:>11.1%}"
                if not paired
                else f"{'':7}{expected:>11.1%} in pairs"
            )
            rows.append(f"{name if not paired else '':26}{words}")
    return rows


def _spec(index: int, stages: tuple[int, ...]) -> StageSpec:
    value = (ValueSpec("x", (WIDTH,), "float32", True),)
    last, loss = index == len(stages) - 1, ValueSpec("loss", (), "float32", True)
    given = () if index else ("x",)
    passed = (value if index else (), () if last else value, given)
    return StageSpec(index, len(stages), *passed, ("loss",), loss, rank=stages[index])


def _share(pipeline: Pipeline, groups: Groups) -> float:
    """The idle share of one step, of all ranks."""
    recorder = Recorder(dist.get_rank(), torch.device("cpu"))
    batches = [{"x": torch.zeros(WIDTH)}] * MICROBATCHES
    pipeline.step(batches)
    dist.barrier()
    pipeline.recorder = recorder
    pipeline.step(batches)
    pipeline.recorder = None
    found: list[Any] = [None] * groups.mesh.world
    dist.all_gather_object(found, [tuple(event) for event in recorder.events])
    return float(usage([Event(*event) for each in found for event in each]).idle_of_makespan)


def _steps(names: list[str], rounds: int, toy: bool) -> list[str]:
    ranks = dist.get_world_size()
    model, batch, layers = _model(toy)
    reference = torch_step(model, batch, MICROBATCHES)
    even = [f"transformer.h.{layers * place // ranks}" for place in range(1, ranks)]
    rows = [
        f"\n{ranks} ranks, {MICROBATCHES} microbatches\n{'schedule':26}{'cut':10}ratio to torch's 1F1B (quartiles)"
    ]
    for name in names:
        for cut in ("same", "chosen") if name == "1f1b" else ("chosen",):
            plan = fxpar.Plan(
                pp=ranks,
                vpp=SCHEDULES[name].least,
                schedule=name,
                microbatches=MICROBATCHES,
                cut={"at": even} if cut == "same" else None,
            )
            module = fxpar.parallelize(model, plan, kwargs=batch, device="cpu")
            way = _emitted(module, batch)
            _check_equal(way, reference, module)
            result = compare(_together(way), _together(reference.run), rounds)
            rows.append(f"{name:26}{cut:10}{result}")
    return rows


def _model(toy: bool) -> tuple[Any, dict[str, torch.Tensor], int]:
    """A decoder that torch's `pipeline()` can cut: positions are learned, and the head is not tied."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    width, layers, length = (32, 8, 16) if toy else (384, 8, 128)
    config = transformers.GPT2Config(
        vocab_size=width * 8,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    tokens = torch.randint(0, width * 8, (2 * MICROBATCHES, length))
    return model, {"input_ids": tokens, "labels": tokens.clone()}, layers


def _emitted(module: Any, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    parameters = list(module.parameters())

    def run() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss: torch.Tensor = module.step(batch)
        return loss

    return run


def _check_equal(way: Callable[[], torch.Tensor], reference: Any, module: Any) -> None:
    """Raise unless the loss and the norms of all gradients agree, whichever ranks have them."""
    torch.testing.assert_close(way(), reference.run(), rtol=1e-4, atol=1e-5)
    found = {name: parameter.grad.norm().item() for name, parameter in module.named_parameters()}
    wanted = {name: gradient.norm().item() for name, gradient in reference.gradients().items()}
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (found, wanted))
    ours, theirs = ({k: v for each in everywhere for k, v in each[side].items()} for side in (0, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def _together(way: Callable[[], object]) -> Callable[[], None]:
    """A step that begins and ends on all ranks at once, so that the slowest one counts."""

    def run() -> None:
        dist.barrier()
        way()
        dist.barrier()

    return run


if __name__ == "__main__":
    main()
