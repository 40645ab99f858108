"""Tensor parallelism on two processes: a training step of what fxpar emits, against torch's `parallelize_module`.

    python benchmarks/tensor.py [--plan tp+sp] [--rounds 11] [--toy]

Forward and backward with complete gradients, without optimizer, over gloo. Both have the same weights and the same
batch; their losses and gradients are compared first, and the bytes that a rank sends in a step are counted. `least` is
8(t-1)/t * A for each layer, half as much for embedding and head together (A the bytes of an activation), and three sums
of one number a token for the loss.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from byhand import parallelized
from byhand import step as by_hand
from decoders import build
from machine import describe
from ratio import compare
from torch.distributed.device_mesh import init_device_mesh
from traffic import Traffic, counted

import fxpar

RANKS = 2
#: Whether the sequence is split between blocks.
PLANS = {"tp": False, "tp+sp": True}


def main() -> None:
    """Start the ranks, or be one of them; rank 0 prints a row for each plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=tuple(PLANS), action="append", help="both without it")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit(_launch())
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        print(f"{describe()}, {RANKS} processes")
        print(
            f"{'plan':8}{'emitted':>10}{'by hand':>10}{'sent':>11}{'by hand':>11}{'least':>11}  ratio (quartiles)"
        )
    for plan in options.plan or PLANS:
        row = _row(plan, 2 if options.toy else options.rounds, options.toy)
        if dist.get_rank() == 0:
            print(row, flush=True)
    dist.destroy_process_group()


def _launch() -> int:
    """Run this script once for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    shared.setdefault("OMP_NUM_THREADS", "1")
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env=shared | {"RANK": str(rank)})
        for rank in range(RANKS)
    ]
    return max(abs(rank.wait()) for rank in ranks)


def _row(plan: str, rounds: int, toy: bool) -> str:
    sequence = PLANS[plan]
    model, batch = build("llama", toy=toy)
    emitted = fxpar.parallelize(model, fxpar.Plan(tp=RANKS, sequence_parallel=sequence), kwargs=batch)
    least = _least(model.config, batch["input_ids"])
    handmade = parallelized(model, init_device_mesh("cpu", (RANKS,)), sequence=sequence)
    ways = (_emitted(emitted, batch), by_hand(handmade, batch))
    sent = [_sent(way) for way in ways]
    torch.testing.assert_close(ways[0](), ways[1]())
    _check_equal(emitted, handmade)
    result = compare(_together(ways[0]), _together(ways[1]), rounds)
    times = "".join(f"{min(seconds) * 1e3:>7.0f} ms" for seconds in (result.first, result.second))
    sizes = "".join(f"{size / 2**20:>8.2f} MB" for size in [*(traffic.total for traffic in sent), least])
    calls = f"\n    emitted: {sent[0]}\n    by hand: {sent[1]}"
    return f"{plan:8}{times}{sizes}  {result}{calls}"


def _emitted(module: Any, batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    parameters = list(module.parameters())

    def run() -> torch.Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss: torch.Tensor = module.step(batch)
        return loss

    return run


def _together(way: Callable[[], object]) -> Callable[[], None]:
    """A step that begins and ends on all ranks at once, so that the slowest one counts."""

    def run() -> None:
        dist.barrier()
        way()
        dist.barrier()

    return run


def _sent(way: Callable[[], object]) -> Traffic:
    way()
    with counted() as traffic:
        way()
    return traffic


def _check_equal(emitted: Any, handmade: Any) -> None:
    """Raise unless all gradients agree. Both split every parameter alike."""
    found = dict(emitted.named_parameters())
    for name, parameter in handmade.named_parameters():
        local = parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad
        torch.testing.assert_close(found[name].grad, local, rtol=1e-3, atol=1e-5)


def _least(config: Any, tokens: torch.Tensor) -> float:
    activation: int = tokens.numel() * config.hidden_size * 4
    share = (RANKS - 1) / RANKS
    return share * float(activation * (8 * config.num_hidden_layers + 4) + 3 * 2 * tokens.numel() * 4)


if __name__ == "__main__":
    main()
