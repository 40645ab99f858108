"""A training step of what fxpar emits for one rank, against the original model: forward and backward, no optimizer.

    python benchmarks/step.py [--model llama] [--rounds 11] [--compiled] [--toy]

Both have the same weights and the same batch, and their losses and gradients are compared first. `saved` is what
autograd keeps between forward and backward, without the parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from decoders import NAMES, build
from machine import describe
from ratio import compare
from torch import nn

import fxpar

Batch = dict[str, torch.Tensor]


def main() -> None:
    """Print a row for each model, eager and compiled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=NAMES, action="append", help="both without it")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--mode", choices=("eager", "compiled"), action="append", help="both without it")
    parser.add_argument("--toy", action="store_true", help="tiny models, to see that it runs")
    options = parser.parse_args()
    print(describe())
    print(f"{'model':8}{'mode':10}{'emitted':>10}{'original':>10}{'saved':>9}{'':>9}  ratio (quartiles)")
    for name in options.model or NAMES:
        for mode in options.mode or ("eager", "compiled"):
            print(
                _row(name, mode == "compiled", 2 if options.toy else options.rounds, options.toy), flush=True
            )


def _row(name: str, compiled: bool, rounds: int, toy: bool) -> str:
    model, batch = build(name, toy=toy)
    emitted = fxpar.parallelize(model, fxpar.Plan(), kwargs=batch)
    _check_equal(emitted, model, batch)
    saved = [_saved(module, batch) for module in (emitted, model)]
    ways: list[Callable[[], object]] = [
        _step(torch.compile(module) if compiled else module, batch) for module in (emitted, model)
    ]
    result = compare(ways[0], ways[1], rounds)
    times = "".join(f"{min(seconds) * 1e3:>7.0f} ms" for seconds in (result.first, result.second))
    sizes = "".join(f"{size / 2**20:>6.0f} MB" for size in saved)
    return f"{name:8}{'compiled' if compiled else 'eager':10}{times}{sizes}  {result}"


def _step(module: Any, batch: Batch) -> Callable[[], object]:
    parameters = list(module.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        _loss(module, batch).backward()  # type: ignore[no-untyped-call]

    return step


def _loss(module: Any, batch: Batch) -> torch.Tensor:
    loss: torch.Tensor = module(**batch).loss
    return loss


def _check_equal(emitted: nn.Module, model: nn.Module, batch: Batch) -> None:
    """Raise unless loss and gradients agree."""
    losses = [_loss(module, batch) for module in (emitted, model)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    found = dict(emitted.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)


def _saved(module: nn.Module, batch: Batch) -> int:
    """Bytes of the distinct storages that autograd keeps for backward, parameters excepted."""
    known = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(module, batch)
    total = sum(sizes.values())
    del loss
    return total


if __name__ == "__main__":
    main()
