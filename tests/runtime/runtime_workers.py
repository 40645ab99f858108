"""What the real processes of the tests run; beside the tests, so that a new process can import it."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runtime_cases import LAYOUTS, cases
from runtime_layers import assert_compiles_alike, decoder

import fxpar
from fxpar import runtime
from fxpar.mesh import Mesh
from fxpar.runtime.gradients import ParameterGradient, clip_gradients_, reduce_gradients
from fxpar.runtime.groups import Groups
from fxpar.runtime.processes import connect


def start(function, world: int, store: str) -> None:
    """Run `function(rank)` in `world` processes with a gloo group."""
    mp.spawn(_enter, args=(function, world, store), nprocs=world, join=True)


def _enter(rank: int, function, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    function(rank)
    dist.destroy_process_group()


def everything(rank: int) -> None:
    """All conversions, groups in another order than the ranks, transport, traffic, lowerings, a compiled conversion."""
    groups = connect(
        Mesh({"dp": 1, "tp": 2}), ["tp", "dp+tp", "cp", "tp[0]", "tp[1,0]"], device="cpu", timeout=60
    )
    for layout in LAYOUTS[::2]:
        for dtype in (torch.float64, torch.bfloat16, torch.int32, torch.bool):
            for case in cases(2, layout, 1, dtype).values():
                case.run(rank, groups.tp)
    for case in cases(2, [2, 1, 1, 2], 0).values():
        case.run(1 - rank, groups["tp[1,0]"])
    _groups_of_one(rank, groups)
    _traffic(groups)
    _transport(rank, groups)
    _lowerings(rank, groups)
    _gradients(rank, groups)
    _compiled(rank, groups)
    groups.close()


def _groups_of_one(rank: int, groups: Groups) -> None:
    x = torch.ones(2)
    assert torch.equal(runtime.all_reduce(x, groups.cp), x)
    assert ("tp[0]" in groups) == (rank == 0)
    assert runtime.all_reduce(x, groups.world).tolist() == [2, 2]


def _traffic(groups: Groups) -> None:
    groups.counter.reset()
    x = torch.ones(4, requires_grad=True)
    runtime.all_gather(x, 0, groups.tp).sum().backward()
    counter = groups.counter
    assert (counter.calls(), counter.bytes("all_gather", phase="forward")) == (2, 16)
    assert counter.bytes("reduce_scatter", phase="backward") == 16


def _transport(rank: int, groups: Groups) -> None:
    if rank == 0:
        for value in range(3):
            groups.transport.send(torch.full((2,), value), 1)
        groups.transport.flush()
    else:
        like = torch.empty(2, dtype=torch.int64, device="meta")
        assert [groups.transport.recv(0, like).tolist() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]


def _lowerings(rank: int, groups: Groups) -> None:
    torch.manual_seed(0)
    table, ids = torch.randn(8, 6), torch.tensor([1, 5, 5, 7])
    own = table.chunk(2)[rank].requires_grad_()
    rows = runtime.all_reduce_both(runtime.embedding(ids, own, groups.tp), groups.tp)
    loss = runtime.cross_entropy(rows.detach().chunk(2, 1)[rank], ids % 6, classes=groups.tp)
    torch.testing.assert_close(rows, table[ids])
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(table[ids], ids % 6))


def _gradients(rank: int, groups: Groups) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, 2.0]) if rank else None
    marked = [ParameterGradient("weight", weight, ("tp",))]
    reduce_gradients(marked, groups)
    assert weight.grad.tolist() == [1, 2]
    assert float(clip_gradients_(marked, 1.0, groups)) ** 2 == pytest.approx(5)


def _compiled(rank: int, groups: Groups) -> None:
    """Inductor sees the collectives themselves, forward and backward, and gives the same numbers."""
    from torch._inductor.utils import run_and_get_code

    def forward(x: torch.Tensor) -> torch.Tensor:
        return runtime.all_gather(x.sin(), 1, groups.tp, layout=[1, 2, 1, 1]).cos()

    def gradient(function) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.arange(6.0).reshape(2, 3).add(rank).requires_grad_()
        y = function(x)
        y.square().sum().backward()
        return y.detach(), x.grad

    compiled = torch.compile(forward, fullgraph=True)
    result, code = run_and_get_code(lambda: gradient(compiled))
    torch.testing.assert_close(result, gradient(forward))
    text = "\n".join(code)
    assert "_c10d_functional.all_gather_into_tensor" in text
    assert "_c10d_functional.reduce_scatter_tensor" in text
    assert "torch.ops.fxpar" not in re.sub("#.*", "", text)


def compiled_layers(_: int) -> None:
    """Layers whose collectives are inside of what is compiled."""
    model, batch = decoder()
    module = fxpar.parallelize(model, fxpar.Plan(tp=2), kwargs=batch, device="cpu")
    assert_compiles_alike(module, batch, "aot_eager")
