"""A run that is stopped and goes on, at the same mesh or another, makes the steps of one that was never stopped."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stopped_runs import PLANS, RANKS, Make, Partitions, adagrad, adamw, run, sgd, steps
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from fxpar.checkpoint.checking import verify as verify_checkpoint
from fxpar.checkpoint.reshard import reshard
from fxpar.checkpoint.sharded import CheckpointWeights
from fxpar.checkpoint.stored import open_folder
from fxpar.checkpoint.target import target as laid_out
from fxpar.errors import CheckpointError
from fxpar.parallel import parallelize
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.rank import Rank

BEFORE, AFTER = 3, 10
TRAINING = "training.json"


@pytest.fixture(scope="module")
def partitions(tmp_path_factory: pytest.TempPathFactory) -> Partitions:
    return Partitions(tmp_path_factory.mktemp("partitions"))


@pytest.fixture(scope="module")
def checkpoint(partitions: Partitions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of AdamW with a schedule, after some steps at tp 2 x pp 2."""
    place = tmp_path_factory.mktemp("saved") / "checkpoint"
    run(partitions("tp2pp2"), "tp2pp2", adamw, BEFORE, target=place)
    return place


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.mark.parametrize("make", [adamw, sgd, adagrad])
def test_at_another_mesh(partitions: Partitions, make: Make, tmp_path: Path) -> None:
    """tp 2 x pp 2, then any other mesh and back: the losses of one process that was never stopped."""
    whole = run(partitions("one"), "one", make, BEFORE + AFTER)[0]
    first = run(partitions("tp2pp2"), "tp2pp2", make, BEFORE, target=tmp_path / "first")
    assert first == [pytest.approx(whole[:BEFORE], rel=1e-9)] * 4
    for name in ("pp4", "tp4", "one"):
        found = run(partitions(name), name, make, AFTER, start=tmp_path / "first", target=tmp_path / name)
        assert found == [pytest.approx(whole[BEFORE:], rel=1e-9)] * RANKS[name]
    for name in ("tp4", "one"):
        found = run(partitions("tp2pp2"), "tp2pp2", make, 1, start=tmp_path / name)
        assert found == [pytest.approx(found[0])] * 4
    whole = run(partitions("one"), "one", make, BEFORE + AFTER + 1)[0]
    assert found[0][0] == pytest.approx(whole[-1], rel=1e-9)


def test_replicas_go_on(partitions: Partitions, checkpoint: Path) -> None:
    whole = run(partitions("one"), "one", adamw, BEFORE + 2)[0]
    found = run(partitions("dp2pp2"), "dp2pp2", adamw, 2, start=checkpoint)
    assert found == [pytest.approx(whole[BEFORE:], rel=1e-9)] * 4


def test_with_dropout_at_the_same_mesh(partitions: Partitions, tmp_path: Path) -> None:
    """Random numbers go on, too."""
    folder, (name, make) = partitions("tp2pp2", 0.3), ("tp2pp2", adamw)
    whole = run(folder, name, make, BEFORE + AFTER)
    first = run(folder, name, make, BEFORE, target=tmp_path / "stopped")
    found = run(folder, name, make, AFTER, start=tmp_path / "stopped")
    assert [a + b for a, b in zip(first, found)] == whole
    other = run(folder, name, make, AFTER)
    assert other != found


def test_after_the_resharder(partitions: Partitions, checkpoint: Path, tmp_path: Path) -> None:
    """Files that were laid out anew say the same."""
    reshard(checkpoint, tmp_path / "new", lambda index: laid_out(index, {"tp": 4}))
    whole = run(partitions("one"), "one", adamw, BEFORE + AFTER)[0]
    found = run(partitions("tp4"), "tp4", adamw, AFTER, start=tmp_path / "new")
    assert found == [pytest.approx(whole[BEFORE:], rel=1e-9)] * 4


def test_what_is_saved(checkpoint: Path) -> None:
    """Every box of every moment in one file only, no padding, no replica; plain JSON for the rest."""
    stored = open_folder(checkpoint)
    tensors = stored.index.tensors
    moments = tensors["exp_avg/tokens.weight"]
    assert (moments.of, moments.shape, moments.dims) == (
        "tokens.weight",
        (66, 16),
        tensors["tokens.weight"].dims,
    )
    assert sorted(moments.files) == ["optimizer-pp0-tp0.safetensors", "optimizer-pp0-tp1.safetensors"]
    assert list(tensors["tokens.weight"].files) == ["model-pp0-tp0.safetensors", "model-pp0-tp1.safetensors"]
    step = tensors["step/tokens.weight"]
    assert (step.shape, step.dtype, list(step.files)) == ((), "F32", ["optimizer-pp0-tp0.safetensors"])
    training = json.loads((checkpoint / TRAINING).read_text())
    assert training["step"] == BEFORE
    assert [group["options"]["weight_decay"] for group in training["optimizer"]["groups"]] == [0.1, 0.0]
    assert training["scheduler"]["state"]["last_epoch"] == BEFORE
    assert len(training["generators"]) == 1


def test_everything_that_is_saved_has_a_checksum(checkpoint: Path) -> None:
    found = verify_checkpoint(checkpoint)
    assert found.summed == found.parts > 0
    assert not found.wrong


def test_torch_random_numbers_go_on(partitions: Partitions, tmp_path: Path) -> None:
    rank = load(partitions("one"), device="cpu")
    rank.save(tmp_path / "saved")
    wanted = torch.rand(3)
    assert rank.restore(tmp_path / "saved") is None
    assert torch.equal(torch.rand(3), wanted)


def test_other_order_and_groups(partitions: Partitions, checkpoint: Path) -> None:
    """Parameters are known by name, so that each finds its own moments and hyperparameters."""
    rank = load(partitions("one"), device="cpu")
    parameters = list(rank.parameters())[::-1]
    groups = [[p for p in parameters if p.dim() == 1], *([p] for p in parameters if p.dim() > 1)]
    optimizer = AdamW([{"params": group} for group in groups])
    assert rank.restore(checkpoint, optimizer=optimizer) == BEFORE
    assert {g["weight_decay"] for g in optimizer.param_groups[1:]} == {0.1}
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    weights = CheckpointWeights(checkpoint)
    for name, parameter in rank.named_parameters():
        state = optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"):
            assert torch.equal(state[key], weights.read(f"{key}/{name}"))


def test_wider_moments_stay_wide(tmp_path: Path) -> None:
    """torch itself casts moments to the dtype of the parameter."""
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    rank, again = (
        parallelize(model, PLANS["one"], (torch.ones(4, 3, dtype=torch.bfloat16),), device="cpu")
        for _ in "ab"
    )
    optimizer = SGD(rank.parameters(), lr=0.1, momentum=0.9)
    for parameter in rank.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.rand(parameter.shape)
    rank.save(tmp_path / "saved", optimizer=optimizer)
    other = SGD(again.parameters(), lr=1.0)
    again.restore(tmp_path / "saved", optimizer=other)
    for mine, theirs in zip(rank.parameters(), again.parameters()):
        kept = other.state[theirs]["momentum_buffer"]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, optimizer.state[mine]["momentum_buffer"])


def test_weights_alone(partitions: Partitions) -> None:
    """A folder without weights, and its ranks with those of a checkpoint."""
    whole = run(partitions("one"), "one", sgd, 1)
    folder, other = partitions("tp4", weights=False), partitions("one")

    def loss(_: int, groups: Any) -> float:
        rank = load(folder, groups, "cpu", weights=other)
        return steps(rank, *sgd(rank), 0, 1)[0]

    assert simulate(PLANS["tp4"].mesh, loss) == [pytest.approx(whole[0][0], rel=1e-9)] * 4


def test_only_own_bytes_are_read(partitions: Partitions, copied: Path) -> None:
    """What only other ranks need may be missing."""
    for path in copied.glob("*-pp1-*"):
        path.unlink()

    def body(number: int, groups: Groups) -> None:
        if number < 2:
            rank = load(partitions("tp2pp2"), groups, "cpu", weights=copied)
            optimizer, scheduler = adamw(rank)
            assert rank.restore(copied, optimizer=optimizer, scheduler=scheduler) == BEFORE

    simulate(PLANS["tp2pp2"].mesh, body)


def refused(partitions: Partitions, folder: Path, message: str, make: Make = adamw) -> None:
    """A rank refuses a checkpoint, and its parameters and optimizer stay as they were."""
    rank = load(partitions("one"), device="cpu")
    optimizer, scheduler = make(rank)
    before = {name: tensor.clone() for name, tensor in rank.state_dict().items()}
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    with pytest.raises(CheckpointError, match=re.escape(message)):
        rank.restore(folder, optimizer=optimizer, scheduler=scheduler)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rank.state_dict().items())
    assert groups == [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]


def rewritten(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_missing_file(partitions: Partitions, copied: Path) -> None:
    (copied / "optimizer-pp1-tp0.safetensors").unlink()
    refused(
        partitions,
        copied,
        f"{copied} is no whole checkpoint\n  {copied}/optimizer-pp1-tp0.safetensors is missing",
    )


@pytest.mark.parametrize("name", ["model-pp0-tp1.safetensors", "optimizer-pp0-tp1.safetensors"])
def test_a_truncated_file(partitions: Partitions, copied: Path, name: str) -> None:
    path = copied / name
    path.write_bytes(path.read_bytes()[:-8])
    refused(partitions, copied, f"{path}: its tensors take")


def test_swapped_files(partitions: Partitions, copied: Path) -> None:
    (copied / "model-pp0-tp0.safetensors").rename(copied / "other")
    (copied / "model-pp0-tp1.safetensors").rename(copied / "model-pp0-tp0.safetensors")
    (copied / "other").rename(copied / "model-pp0-tp1.safetensors")
    refused(partitions, copied, "was written as model-pp0-tp1.safetensors")


def test_no_index_is_no_checkpoint(partitions: Partitions, copied: Path) -> None:
    (copied / "fxpar.index.json").unlink()
    refused(
        partitions,
        copied,
        f"{copied} is no checkpoint: it has no fxpar.index.json, model.safetensors.index.json or model.safetensors",
    )


def test_a_missing_box(partitions: Partitions, copied: Path) -> None:
    def drop(data: Any) -> None:
        del data["tensors"]["tokens.weight"]["files"]["model-pp0-tp1.safetensors"]

    rewritten(copied / "fxpar.index.json", drop)
    refused(partitions, copied, "`tokens.weight` [66, 16]: no file has the box [33, 16] at [33, 0]")


def test_another_model(copied: Path) -> None:
    """All that does not fit, at once."""
    model = torch.nn.ModuleDict({"norm": torch.nn.Linear(16, 4), "tokens": torch.nn.Embedding(66, 16)})

    class Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.tokens = model["norm"], model["tokens"]

        def forward(self, idx: Tensor) -> Tensor:
            return self.norm(self.tokens(idx))

    rank = parallelize(Other(), PLANS["one"], (torch.zeros(2, 3, dtype=torch.int64),), device="cpu")
    with pytest.raises(CheckpointError) as caught:
        rank.restore(copied)
    said = str(caught.value)
    assert said.startswith(f"{copied} does not fit the partition\n")
    for line in (
        "unexpected: `blocks.0.attention.proj.bias`",
        "size of `norm.weight`: [16] in the file, [4, 16] in the model",
        "dtype of `tokens.weight`: float64 in the file, float32 in the model",
    ):
        assert f"\n  {line}" in said


def test_another_optimizer(partitions: Partitions, checkpoint: Path) -> None:
    def make(rank: Rank) -> tuple[Optimizer, Any]:
        optimizer = SGD(rank.parameters(), lr=0.1)
        return optimizer, None

    said = "the state is that of torch.optim.adamw.AdamW, the optimizer is torch.optim.sgd.SGD"
    refused(partitions, checkpoint, said, make)


def test_another_scheduler(partitions: Partitions, checkpoint: Path) -> None:
    def make(rank: Rank) -> tuple[Optimizer, Any]:
        optimizer, _ = adamw(rank)
        return optimizer, CosineAnnealingLR(optimizer, 20)

    said = (
        f"{checkpoint} lacks some of what is to be restored\n  its scheduler is a torch.optim.lr_scheduler.LambdaLR, "
        "the one to be restored is a torch.optim.lr_scheduler.CosineAnnealingLR"
    )
    refused(partitions, checkpoint, said, make)


def test_groups_that_a_schedule_does_not_know(partitions: Partitions, checkpoint: Path) -> None:
    def make(rank: Rank) -> tuple[Optimizer, Any]:
        optimizer, _ = adamw(rank)
        swapped = AdamW([{"params": group["params"]} for group in optimizer.param_groups[::-1]])
        return swapped, LambdaLR(swapped, [lambda _: 1.0, lambda _: 1.0])

    refused(
        partitions, checkpoint, "`norm.bias` was in group 1, and is in group 0: the scheduler knows", make
    )


def test_missing_and_unexpected_parameters(partitions: Partitions, copied: Path) -> None:
    def rename(data: Any) -> None:
        names = data["optimizer"]["groups"][0]["parameters"]
        names[names.index("positions.weight")] = "position.weight"

    rewritten(copied / TRAINING, rename)
    refused(partitions, copied, "the optimizer does not fit the checkpoint's\n  missing: `positions.weight`")

    def make(rank: Rank) -> tuple[Optimizer, Any]:
        optimizer, _ = adamw(rank)
        del optimizer.param_groups[1]["params"][-2:]
        return optimizer, None

    said = "missing: `positions.weight`\n  unexpected: `norm.bias`\n  unexpected: `norm.weight`"
    refused(partitions, copied, said, make)


def test_one_group_with_two_learning_rates(partitions: Partitions, checkpoint: Path) -> None:
    def make(rank: Rank) -> tuple[Optimizer, Any]:
        return AdamW(rank.parameters()), None

    said = "are in one group, and had other hyperparameters: weight_decay"
    refused(partitions, checkpoint, said, make)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(format=9), "has format 9, this fxpar reads 1"),
        (lambda data: data.pop("generators"), "is damaged\n  it lacks 'generators'"),
        (lambda data: data.update(step=-1), "is damaged\n  -1 is no number of steps"),
        (
            lambda data: data.update(optimizer=None),
            "lacks some of what is to be restored\n  it has no optimizer",
        ),
        (lambda data: data["generators"][0].update(cpu="!"), "`cpu` has no state of a generator"),
    ],
)
def test_damaged_training_state(
    partitions: Partitions, copied: Path, change: Callable[[Any], object], said: str
) -> None:
    rewritten(copied / TRAINING, change)
    refused(partitions, copied, said)


def test_no_training_state(partitions: Partitions, copied: Path) -> None:
    (copied / TRAINING).unlink()
    said = "has no state of training: there is no training.json\n  fxpar.load(folder, weights=...) reads weights alone"
    refused(partitions, copied, f"{copied} {said}")
