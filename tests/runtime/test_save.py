"""Saving: all ranks or none, nothing under the target's name before it is whole, and nothing that is not exact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import PLANS, Partitions, adamw, sgd
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adafactor, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from fxpar.checkpoint.index import Index
from fxpar.checkpoint.sharded import CheckpointWeights
from fxpar.emit.folder import write
from fxpar.errors import CheckpointError, FxparError, RankError
from fxpar.origin import of_module
from fxpar.parallel import parallelize
from fxpar.passes import split
from fxpar.plan import Plan
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.rank import Rank
from fxpar.runtime.save import save


@pytest.fixture(scope="module")
def partitions(tmp_path_factory: pytest.TempPathFactory) -> Partitions:
    return Partitions(tmp_path_factory.mktemp("partitions"))


def linear() -> Rank:
    """A rank of a model with a weight [2, 3] and a bias [2]."""
    return parallelize(nn.Linear(3, 2), Plan(), (torch.ones(4, 3),), device="cpu")


def stepped(rank: Rank, optimizer: Optimizer) -> Optimizer:
    """The optimizer after a step with gradients of ones."""
    for parameter in rank.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(lambda: torch.ones(()))
    return optimizer


def refused(rank: Rank, target: Path, said: str, **state: Any) -> None:
    """Nothing is written, not even beside the target."""
    with pytest.raises(CheckpointError, match=re.escape(said)):
        rank.save(target, **state)
    assert list(target.parent.iterdir()) == []


def test_factored_moments_are_refused(tmp_path: Path) -> None:
    rank = linear()
    said = (
        "the state of Adafactor cannot be saved exactly\n"
        "  `row_var` of `weight` is [2, 1], neither as the parameter [2, 3] nor one number: which part of the whole it "
        "is, is not known\n"
        "  `col_var` of `weight` is [1, 3], neither"
    )
    refused(rank, tmp_path / "saved", said, optimizer=stepped(rank, Adafactor(rank.parameters())))


def test_histories_are_refused(tmp_path: Path) -> None:
    rank = linear()
    said = "`d` of `weight` is [8], neither as the parameter [2, 3] nor one number"
    refused(rank, tmp_path / "saved", said, optimizer=stepped(rank, LBFGS(rank.parameters(), max_iter=1)))


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    rank = linear()
    optimizer = SGD(rank.parameters(), lr=0.1)
    optimizer.param_groups[0] |= {"scale": max, "mask": torch.ones(3)}
    said = "the state of SGD cannot be saved exactly\n  group 0['scale'] is a builtin_function_or_method\n"
    refused(rank, tmp_path / "saved", f"{said}  group 0['mask'] is a Tensor [3]", optimizer=optimizer)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    scheduler.hook = max  # type: ignore[attr-defined]
    said = (
        "the state of LambdaLR cannot be saved exactly\n  its state['hook'] is a builtin_function_or_method"
    )
    refused(rank, tmp_path / "saved", said, scheduler=scheduler)


def test_parameters_of_others_are_refused(tmp_path: Path) -> None:
    rank = linear()
    optimizer = SGD([*rank.parameters(), nn.Parameter(torch.ones(7))], lr=0.1)
    said = "group 0 has a parameter [7] that the module has not"
    refused(rank, tmp_path / "saved", said, optimizer=optimizer)


class Odd(Optimizer):
    """State of every kind that can be saved: numbers of one element in several forms, texts, and nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": torch.tensor(0.1), "limits": (0.5, float("inf")), "name": "odd"})

    def step(self, _: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["count"], state["rate"] = 2**60 + 1, 0.1
            state["step"], state["ratio"] = torch.tensor(3, dtype=torch.int64), torch.tensor([0.3])
            state["seen"], state["none"] = torch.ones_like(parameter, dtype=torch.bool), None
            state["half"] = torch.full_like(parameter, 1 / 3, dtype=torch.bfloat16)


def plain(optimizer: Optimizer) -> Any:
    """What an optimizer keeps, in the order of keys."""
    state = optimizer.state_dict()
    return {number: sorted(each.items()) for number, each in state["state"].items()}, state["param_groups"]


def test_all_kinds_of_state_come_back(tmp_path: Path) -> None:
    rank, again = linear(), linear()
    optimizer, other = stepped(rank, Odd(rank.parameters())), Odd(again.parameters())
    rank.save(tmp_path / "saved", optimizer=optimizer)
    again.restore(tmp_path / "saved", optimizer=other)
    assert str(plain(other)) == str(plain(optimizer))
    assert type(other.param_groups[0]["limits"]) is tuple
    state = other.state[next(again.parameters())]
    dtypes = {key: value.dtype for key, value in state.items() if isinstance(value, Tensor)}
    assert dtypes == {"step": torch.int64, "ratio": torch.float32, "seen": torch.bool, "half": torch.bfloat16}


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9),
        lambda optimizer: ReduceLROnPlateau(optimizer, min_lr=0.01),
        lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 5]),
        lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
            ],
            [2],
        ),
    ],
)
def test_schedulers_come_back(make: Callable[[Optimizer], Any], tmp_path: Path) -> None:
    rank, again = linear(), linear()
    optimizer, other = Adam(rank.parameters()), Adam(again.parameters())
    scheduler, second = make(optimizer), make(other)
    for _ in range(3):
        stepped(rank, optimizer)
        scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    rank.save(tmp_path / "saved", optimizer=optimizer, scheduler=scheduler, step=3)
    assert again.restore(tmp_path / "saved", optimizer=other, scheduler=second) == 3
    assert str(second.state_dict()) == str(scheduler.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_what_is_there_is_not_saved_over(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    with pytest.raises(FxparError, match="saved exists already\n  name another folder"):
        linear().save(tmp_path / "saved")


def test_persistent_buffers_are_saved(tmp_path: Path) -> None:
    """Also those of a partition without weights."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_mean.fill_(7)
    found = of_module(model, torch.ones(4, 3))
    write(split(found.program, Plan()), tmp_path / "out", None)
    load(tmp_path / "out", device="cpu").save(tmp_path / "saved")
    weights = CheckpointWeights(tmp_path / "saved")
    assert {"0.weight", "1.running_mean", "1.running_var"} <= set(weights.names())
    assert weights.read("1.running_mean").tolist() == [7, 7]


def on_all(partitions: Partitions, body: Callable[[Rank, int], Any]) -> list[Any]:
    """Run something on the four ranks of tp 2 x pp 2."""
    folder = partitions("tp2pp2")
    return list(
        simulate(PLANS["tp2pp2"].mesh, lambda number, groups: body(load(folder, groups, "cpu"), number))
    )


def test_all_ranks_fail_together(
    partitions: Partitions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank's disk is full: each raises, and there is no folder, whole or not."""
    import fxpar.runtime.save as module

    write_file = module._write_file

    def full(path: Path, *arguments: Any) -> None:
        if path.name == "model-pp1-tp0.safetensors":
            raise CheckpointError(f"{path.name} cannot be written: No space left on device")
        write_file(path, *arguments)

    monkeypatch.setattr(module, "_write_file", full)

    def body(rank: Rank, _: int) -> str:
        with pytest.raises(FxparError) as caught:
            rank.save(tmp_path / "runs" / "saved", step=1)
        return f"{type(caught.value).__name__}: {caught.value}"

    said = "model-pp1-tp0.safetensors cannot be written: No space left on device"
    others = f"RankError: rank 2 has failed: {said}"
    assert on_all(partitions, body) == [others, others, f"CheckpointError: {said}", others]
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_disagree_are_refused(partitions: Partitions, tmp_path: Path) -> None:
    """Another step, another learning rate, and another random seed on one rank."""

    def body(rank: Rank, number: int) -> str:
        optimizer, scheduler = sgd(rank)
        if number == 3:
            rank.randomness.next()
            optimizer.param_groups[0]["lr"] = 0.5
        with pytest.raises(FxparError) as caught:
            rank.save(tmp_path / "saved", optimizer=optimizer, scheduler=scheduler, step=number)
        return str(caught.value)

    said = on_all(partitions, body)[0]
    assert said.startswith("the ranks have different states\n")
    assert "\n  step: rank 0 has 0, rank 1 1" in said
    assert '\n  randomness: rank 0 has {"seed": 0, "step": 0}, rank 3 {"seed": 0, "step": 1}' in said
    assert re.search(
        r'`tokens.weight` is in group 0 with \{"lr": 0.1.* on rank 0, in group 0 with \{"lr": 0.5', said
    )
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_keep_different_things_are_refused(partitions: Partitions, tmp_path: Path) -> None:
    """One rank's optimizer has not stepped: boxes of moments would be missing."""

    def body(rank: Rank, number: int) -> str:
        optimizer, _ = adamw(rank)
        if number != 1:
            stepped(rank, optimizer)
        with pytest.raises(FxparError) as caught:
            rank.save(tmp_path / "saved", optimizer=optimizer)
        return str(caught.value)

    said = on_all(partitions, body)[0]
    wanted = '{"step": ["F32", []], "exp_avg": ["F64", null]'
    assert f"the state of `tokens.weight` on rank 1 is {{}}, a rank before it {wanted}" in said


def test_groups_are_joined_by_stage(partitions: Partitions, tmp_path: Path) -> None:
    """A stage may lack a group; random states that differ are kept for each rank."""

    def body(rank: Rank, number: int) -> None:
        torch.manual_seed(number)
        positions = [p for name, p in rank.named_parameters() if name == "positions.weight"]
        rest = [p for name, p in rank.named_parameters() if name != "positions.weight"]
        groups = [{"params": positions, "lr": 0.5}] if positions else []
        save(rank, tmp_path / "saved", optimizer=SGD([*groups, {"params": rest}], lr=0.1), step=0)

    on_all(partitions, body)
    training = json.loads((tmp_path / "saved" / "training.json").read_text())
    found = [(g["at"], g["options"]["lr"], len(g["parameters"])) for g in training["optimizer"]["groups"]]
    tensors = Index.read(tmp_path / "saved").tensors
    assert sum(count for _, _, count in found) == len(tensors)
    assert [(at, rate) for at, rate, _ in found] == [(0, 0.5), (1, 0.1), (0, 0.1)]


def test_a_module_without_a_layout_is_refused(partitions: Partitions, tmp_path: Path) -> None:
    rank = load(partitions("one"), device="cpu")
    rank.layout = None
    with pytest.raises(RankError, match="the layout of this module is not known"):
        rank.save(tmp_path / "saved")


def test_a_rank_that_does_not_see_the_folder(partitions: Partitions, tmp_path: Path) -> None:
    def body(rank: Rank, _: int) -> str:
        import fxpar.runtime.save as module

        with pytest.raises(FxparError) as caught:
            module._write(rank, rank.layout(), module._collect(rank, None, None, 0), tmp_path / "elsewhere")  # type: ignore[misc]
        return str(caught.value)

    assert "all ranks save to a file system that they share" in on_all(partitions, body)[0]
