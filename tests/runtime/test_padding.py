"""A vocabulary that does not divide, from partition to saved checkpoint: files and state dicts have its rows only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint import load as load_checkpoint
from torch.nn import functional as F

import fxpar
from fxpar.capture.capture import capture
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.weights import TensorWeights
from fxpar.emit.folder import write
from fxpar.parts import ModelWeights, reader
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.assemble import assemble
from fxpar.runtime.groups import Groups
from fxpar.runtime.load import load
from fxpar.runtime.lockstep import simulate
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.rank import Rank
from fxpar.runtime.save import save

ROWS, WIDTH, RANKS = 33, 8, 8
BATCH = {"ids": torch.arange(20).view(4, 5), "labels": torch.arange(13, 33).view(4, 5)}


class Tied(nn.Module):
    """An embedding whose table is the head too, a bias, and logits among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, ROWS)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.tokens(ids).tanh())
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tied().double()


@pytest.fixture(scope="module")
def partition(model: nn.Module) -> Partition:
    return split(capture(model, (), BATCH), Plan(tp=RANKS))


@pytest.fixture(scope="module")
def folder(model: nn.Module, partition: Partition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("uneven") / "out"
    write(partition, place, TensorWeights(model.state_dict()))
    return place


def shards(folder: Path, name: str) -> Iterator[torch.Tensor]:
    """The tensor of each rank's file, in order."""
    for file in Index.read(folder).ranks:
        with safe_open(folder / file, framework="pt") as opened:
            yield opened.get_tensor(name)


def whole(folder: Path, name: str) -> torch.Tensor:
    return torch.cat(list(shards(folder, name)))


def test_files_hold_real_rows_only(model: nn.Module, folder: Path) -> None:
    for name in ("tokens.weight", "head.bias"):
        assert [len(shard) for shard in shards(folder, name)] == [5, 5, 5, 5, 5, 5, 3, 0]
        assert torch.equal(whole(folder, name), model.state_dict()[name])
    tensor = Index.read(folder).tensors["tokens.weight"]
    assert sum(part.sizes[0] for parts in tensor.files.values() for part in parts) == ROWS
    assert tensor.files["model-pp0-tp7.safetensors"][0].sizes == (0, WIDTH)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_files(model: nn.Module, folder: Path) -> None:
    state = {"tokens.weight": torch.zeros(ROWS, WIDTH, dtype=torch.float64)}
    load_checkpoint(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(state["tokens.weight"], model.state_dict()["tokens.weight"])


def test_a_loaded_rank_trains_and_saves(model: nn.Module, folder: Path, tmp_path: Path) -> None:
    """Its padding stays zero, and neither `state_dict` nor a saved file has any."""
    reference = Tied().double()
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.1, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        reference(**BATCH)["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()

    def run(_: int, groups: Groups) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        rank = load(folder, groups, "cpu")
        mine = torch.optim.AdamW(rank.parameters(), lr=0.1, eps=1e-3)
        for _ in range(3):
            mine.zero_grad()
            rank.step(BATCH)
            found = rank.clip_gradients_(0.5)
            mine.step()
        save(rank, tmp_path / "saved")
        return rank.state_dict(), rank.tokens.weight, found

    results = simulate(Manifest.read(folder).grid, run)
    table = reference.tokens.weight.detach()
    for state, weight, found in results:
        assert set(state) == set(reference.state_dict())
        rows = state["head.weight"]
        assert len(rows) == 0 or rows.data_ptr() == weight.data_ptr()
        assert weight.shape == (5, WIDTH)
        assert not weight[len(state["tokens.weight"]) :].any()
        torch.testing.assert_close(found, norm)
    torch.testing.assert_close(torch.cat([state["tokens.weight"] for state, _, _ in results]), table)
    torch.testing.assert_close(whole(tmp_path / "saved", "tokens.weight"), table)
    torch.testing.assert_close(whole(tmp_path / "saved", "head.bias"), reference.head.bias.detach())


def test_what_state_dict_gave_is_taken_back(partition: Partition) -> None:
    program = partition.program

    def run(number: int, groups: Groups) -> None:
        rank: Rank = assemble(
            partition.manifest, partition.texts, groups, reader(partition, number, ModelWeights(program))
        )
        state = {name: tensor.clone() + 1 for name, tensor in rank.state_dict().items()}
        rank.load_state_dict(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in rank.state_dict().items())
        assert not rank.head.bias[len(state["head.bias"]) :].any()

    simulate(partition.mesh, run)


def test_outputs_are_whole(model: nn.Module, partition: Partition) -> None:
    def run(number: int, groups: Groups) -> torch.Tensor:
        read = reader(partition, number, ModelWeights(partition.program))
        _, outputs = assemble(partition.manifest, partition.texts, groups, read).evaluate(BATCH)
        return outputs["logits"]

    logits = model(**BATCH)["logits"]
    for found in simulate(partition.mesh, run):
        torch.testing.assert_close(found, logits)


@pytest.mark.parametrize("plan", [Plan(tp=4), Plan(tp=2, pp=2), Plan(tp=4, microbatches=2)])
def test_verify(model: nn.Module, plan: Plan) -> None:
    report = fxpar.verify(model, kwargs=BATCH, plan=plan, simulate=True)
    assert report.ok, report.text()
    assert max(report.loss_error, report.gradient_error, report.parameter_error, report.output_error) < 1e-11
