"""run.py of a partition with a fault in one rank, put there from outside.

python tests/runtime/fault_worker.py FOLDER FAULT RANK [options of run.py]

A fault is `WHAT-WHERE`: what happens is one of ACTIONS, where it happens one of PLACES.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.pipelining import schedules
from torch.optim.optimizer import register_optimizer_step_post_hook

from fxpar.runtime import train
from fxpar.runtime.rank import Rank

Action = Callable[[], None]
#: The last step; the fault is in this one, so that the others have run well.
STEPS = 2


def fails() -> None:
    """Raise what no code expects."""
    raise ValueError("on purpose")


def kill() -> None:
    """End without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """Hang, with all connections open; go on if anybody says so."""
    os.kill(os.getpid(), signal.SIGSTOP)


ACTIONS: dict[str, Action] = {
    "raise": fails,
    "kill": kill,
    "stop": stop,
    "leave": lambda: sys.exit(0),
    "wait": signal.pause,
}


def in_forward(rank: Rank, action: Action) -> None:
    """In the last stage of the rank, before it runs."""
    stage(rank).register_forward_pre_hook(lambda *_: action())


def in_backward(rank: Rank, action: Action) -> None:
    """While gradients are made: at the first parameter of the rank's last stage that gets one."""
    learning = [parameter for parameter in stage(rank).parameters() if parameter.requires_grad]
    learning[-1].register_hook(lambda _: action())


def in_transfer(_: Rank, action: Action) -> None:
    """Between the start of a transfer and its end: the other rank has it, or waits for it."""
    wait = schedules._wait_batch_p2p

    def waiting(works: Any) -> None:
        if works:
            action()
        wait(works)

    schedules._wait_batch_p2p = waiting


def in_optimizer(_: Rank, action: Action) -> None:
    """After the optimizer has stepped."""
    register_optimizer_step_post_hook(lambda *_: action())


def stage(rank: Rank) -> torch.nn.Module:
    """The last stage that a rank runs."""
    return rank.stages[-1]


PLACES: dict[str, Callable[[Rank, Action], None]] = {
    "forward": in_forward,
    "backward": in_backward,
    "transfer": in_transfer,
    "optimizer": in_optimizer,
}


def main(folder: str, fault: str, victim: str, *options: str) -> None:
    """Run, with the fault in the victim's last step; `WHAT-start` is before it has met the others."""
    what, _, where = fault.partition("-")
    own = os.environ["RANK"] == victim
    if own and where == "start":
        ACTIONS[what]()
    if own and where in PLACES:
        step = Rank.step
        taken = []

        def stepping(self: Rank, *arguments: Any) -> Any:
            taken.append(step)
            if len(taken) == STEPS:
                PLACES[where](self, ACTIONS[what])
            return step(self, *arguments)

        Rank.step = stepping  # type: ignore[method-assign]
    train.main(Path(folder), ["--device", "cpu", "--steps", str(STEPS), "--json", *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
