"""All passes together: what travels between stages, and how much text a model makes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import fxpar
from fxpar.capture import capture
from fxpar.errors import MixingError, PlanError
from fxpar.passes import Partition, split
from fxpar.plan import Plan


@pytest.fixture(scope="module")
def partition() -> Partition:
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        use_cache=False,
    )
    ids = torch.randint(0, 96, (4, 16))
    model = transformers.LlamaForCausalLM(config)
    return split(capture(model, (), {"input_ids": ids, "labels": ids.clone()}), Plan(tp=2, pp=2))


def test_a_stage_sends_the_slice_of_a_rank(partition: Partition) -> None:
    """With sequence parallelism the residual stream is complete and cut, never a summand of the whole sequence."""
    (sent,) = partition.manifest.stages[0].sent
    assert sent.shape == (1, 8, 32)


def test_all_layers_of_a_stage_are_one_class(partition: Partition) -> None:
    for stage in ("stage_0.py", "stage_1.py"):
        classes = [line for line in partition.texts[stage].splitlines() if line.startswith("class ")]
        assert len(classes) == 2


class Parts(nn.Module):
    """It returns its loss, what the loss is the sum of, and one of these scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, dtype=torch.float64) for _ in range(2))
        self.head = nn.Linear(8, 6, dtype=torch.float64)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x).relu()
        logits = self.head(x)
        near, far = F.cross_entropy(logits, labels), F.mse_loss(logits, logits.detach() + 1)
        return {"loss": near + 0.1 * far, "near": near, "far": far}


class Contrast(Parts):
    """Its loss holds every sample against every other."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x).relu()
        return {"loss": F.cross_entropy(x @ x.T, labels % 4)}


def few() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"x": torch.randn(4, 8, dtype=torch.float64), "labels": torch.tensor([0, -100, 5, 2])}


def test_losses_in_parts_are_summed_over_microbatches() -> None:
    report = fxpar.verify(Parts(), kwargs=few(), plan=Plan(pp=2), simulate=True)
    assert report.ok, str(report)
    partition = split(capture(Parts(), (), few()), Plan(pp=2))
    assert partition.manifest.microbatches == 4
    assert [output.time for output in partition.manifest.outputs] == ["sum"] * 3


def test_samples_that_are_mixed_go_together() -> None:
    partition = split(capture(Contrast(), (), few()), Plan(pp=2))
    assert partition.manifest.microbatches == 1
    (note,) = partition.manifest.notes
    assert note.startswith(
        "one microbatch, so stages wait for each other: microbatches mix at `aten.matmul.default`: it needs the whole "
        "batch, the model (test_passes.py:"
    )
    assert fxpar.verify(Contrast(), kwargs=few(), plan=Plan(pp=2), simulate=True).ok


def test_microbatches_that_were_asked_for_are_not_given_up() -> None:
    with pytest.raises(MixingError, match="microbatches mix"):
        split(capture(Contrast(), (), few()), Plan(pp=2, microbatches=2))


class Row(torch.nn.Module):
    """One row of tokens, without a dim for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = (
            torch.nn.Embedding(16, 8, dtype=torch.float64),
            torch.nn.LayerNorm(8).double(),
        )
        self.keys, self.head = (torch.nn.Linear(8, n, dtype=torch.float64) for n in (8, 16))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)[None]
        x = x + torch.nn.functional.scaled_dot_product_attention(x, self.keys(x), x, is_causal=True)
        loss: torch.Tensor = torch.nn.functional.cross_entropy(self.head(self.norm(x))[0], ids)
        return loss


def test_a_loss_of_which_microbatches_have_no_part_is_counted_once() -> None:
    row = {"ids": torch.arange(12)}
    report = fxpar.verify(Row(), kwargs=row, plan=Plan(pp=2), simulate=True)
    assert report.ok, str(report)
    (note,) = split(capture(Row(), (), row), Plan(pp=2)).manifest.notes
    assert (
        "microbatches split nothing that the loss depends on: no axis of the inputs is known as `batch`"
        in note
    )
    with pytest.raises(MixingError) as error:
        split(capture(Contrast(), (), few()), Plan(pp=2, microbatches=2, splits={"batch": None}))
    assert str(error.value).splitlines()[0] == (
        "microbatches split nothing that the loss depends on: no row of the table has `mb`"
    )


class Counting(torch.nn.Module):
    """Layers, and a buffer that counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(8, 8, dtype=torch.float64) for _ in range(2)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layers(x).square().mean()


def test_a_buffer_is_changed_once_a_step() -> None:
    batch = {"x": torch.randn(4, 8, dtype=torch.float64)}
    report = fxpar.verify(Counting(), kwargs=batch, plan=Plan(pp=2), simulate=True)
    assert report.ok, str(report)
    with pytest.raises(MixingError) as error:
        split(capture(Counting(), (), batch), Plan(pp=2, microbatches=2))
    first, where, remedy = str(error.value).splitlines()
    assert first == "each microbatch would change the buffer `calls`, which it reads"
    assert where.startswith("  the model (test_passes.py:")
    assert remedy == "  use one microbatch"


class Flag(Counting):
    """Layers, and a buffer that says whether they were called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.fill_(1)
        return self.layers(x).square().mean()


def test_a_buffer_that_is_only_written_goes_with_microbatches() -> None:
    batch = {"x": torch.randn(4, 8, dtype=torch.float64)}
    report = fxpar.verify(Flag(), kwargs=batch, plan=Plan(pp=2, microbatches=2), simulate=True)
    assert report.ok, str(report)


class Preference(torch.nn.Module):
    """Samples in pairs: the first half of a batch was preferred to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = (
            torch.nn.Embedding(16, 8, dtype=torch.float64),
            torch.nn.Linear(8, 1).double(),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        chosen, rejected = self.head(self.tokens(ids).tanh()).sum((1, 2)).chunk(2)
        loss: torch.Tensor = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        return loss


def test_pairs_of_samples_stay_together() -> None:
    pairs = {"ids": torch.arange(16).view(4, 4)}
    partition = split(capture(Preference(), (), pairs), Plan(pp=2))
    assert partition.manifest.microbatches == 2
    assert fxpar.verify(Preference(), kwargs=pairs, plan=Plan(pp=2), simulate=True).ok
    with pytest.raises(PlanError, match="axis `batch` does not divide over `mb`"):
        split(capture(Preference(), (), pairs), Plan(pp=2, microbatches=4))
