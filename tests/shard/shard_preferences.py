"""Models that are trained on log-probabilities: pairs of answers, clipped ratios, and distillation."""

from __future__ import annotations

from typing import Any

import torch
from shard_models import LENGTH, VOCAB, llama, tokens
from torch import Tensor, nn
from torch.nn import functional as F

PAIRS = 4


def chosen(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The log-probability of each sample's tokens that the mask keeps."""
    found = F.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    return (found * mask[:, 1:]).sum(-1)


class Preference(nn.Module):
    """Direct preference optimisation: pairs of answers, beside a reference model that does not learn.

    Source: Rafailov et al. (2023).
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.policy, self.reference = llama(**config), llama(**config)
        self.reference.requires_grad_(False)

    def forward(self, good: Tensor, bad: Tensor, mask: Tensor) -> dict[str, Tensor]:
        gains = []
        for ids in (good, bad):
            with torch.no_grad():
                before = chosen(self.reference(ids).logits, ids, mask)
            gains.append(chosen(self.policy(ids).logits, ids, mask) - before)
        margin = gains[0] - gains[1]
        return {"loss": -F.logsigmoid(0.1 * margin).mean(), "margin": margin}


class Ratios(nn.Module):
    """Group-relative policy optimisation: clipped ratios, a divergence from given log-probabilities, an entropy bonus.

    Source: Shao et al. (2024).
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.policy = llama(**config)

    def forward(self, ids: Tensor, mask: Tensor, old: Tensor, reference: Tensor, gain: Tensor) -> Tensor:
        scores = F.log_softmax(self.policy(ids).logits[:, :-1] / 0.9, -1)
        found = scores.gather(-1, ids[:, 1:, None])[..., 0]
        ratio, counted = torch.exp(found - old), mask[:, 1:]
        least = torch.minimum(ratio * gain[:, None], ratio.clamp(0.8, 1.2) * gain[:, None])
        divergence = torch.exp(reference - found) - (reference - found) - 1
        entropy = -(scores.exp() * scores).sum(-1)
        each = least - 0.04 * divergence + 0.01 * entropy
        return -((each * counted).sum(-1) / counted.sum(-1)).mean()


class Distilled(nn.Module):
    """A student that learns the distribution of a teacher."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.student, self.teacher = llama(**config), llama(**config)
        self.teacher.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.softmax(self.teacher(ids).logits / 2, -1)
        found = F.log_softmax(self.student(ids).logits / 2, -1)
        return F.kl_div(found, wanted, reduction="batchmean") - 0.5 * (wanted * found).sum(-1).mean()


def pairs(vocab: int = VOCAB) -> dict[str, Tensor]:
    """Two answers each, and which tokens count."""
    given = {
        "good": tokens(1, vocab),
        "bad": tokens(2, vocab),
        "mask": torch.ones(PAIRS, LENGTH, dtype=torch.float64),
    }
    given["mask"][0, :5] = given["mask"][2, 9:] = 0
    return given


def samples(vocab: int = VOCAB) -> dict[str, Tensor]:
    """Answers with their log-probabilities of before, and how good each is."""
    draw = torch.Generator().manual_seed(3)
    old, reference = (
        -torch.rand(PAIRS, LENGTH - 1, generator=draw, dtype=torch.float64) * 5 for _ in range(2)
    )
    gain = torch.randn(PAIRS, generator=draw, dtype=torch.float64)
    return {
        "ids": tokens(1, vocab),
        "mask": pairs()["mask"],
        "old": old,
        "reference": reference,
        "gain": gain,
    }
