"""A script of a user's, with a fault in one rank.

python tests/runtime/script_worker.py FAULT RANK [START]
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import torch
from torch import nn

import fxpar

BATCH = {"input": torch.ones(4, 8)}


def fail(fault: str) -> None:
    """What goes wrong, while the other ranks are in a collective."""
    if fault == "raise":
        raise ValueError("on purpose")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "exit":
        sys.exit("no more tokens")
    if fault == "first attempt" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        raise ValueError("on purpose")
    if fault == "refused":
        socket.create_connection(("127.0.0.1", 1))


def main(fault: str, victim: str, start: str = "10") -> None:
    """Two steps; in the second one rank fails. Without a fault all leave by `sys.exit` inside of the block."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with fxpar.together(device="cpu", start_timeout=float(start)) as device:
        module = fxpar.parallelize(model, fxpar.Plan(tp=2), kwargs=BATCH, device=device)
        for step in range(2):
            if step and os.environ.get("RANK", "0") == victim:
                fail(fault)
            module(**BATCH).sum().backward()
        print(f"done {module.get_parameter('0.weight').grad.shape[0]}", flush=True)
        if fault == "leave":
            sys.exit(0)
    if fault == "again":
        for _ in range(3):
            with fxpar.together(device="cpu"):
                torch.distributed.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
