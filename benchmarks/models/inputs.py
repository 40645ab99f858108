"""Batches for the models of the zoo: small, random, with padding and uncounted labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 96
BATCH, LENGTH = 4, 16

Inputs = dict[str, Any]


def tokens() -> Inputs:
    """Token ids and labels, of which some do not count."""
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": _labels(ids)}


def padded() -> Inputs:
    """The same with one padded sample."""
    batch = tokens()
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, 10:] = 0
    return {**batch, "attention_mask": mask}


def image(size: int = 16) -> Inputs:
    """Pictures and their classes."""
    return {"pixel_values": torch.randn(BATCH, 3, size, size), "labels": torch.randint(0, 2, (BATCH,))}


def pair() -> Inputs:
    """Texts with their pictures."""
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    ids[:, -1] = 2
    return {"input_ids": ids, "pixel_values": torch.randn(BATCH, 3, 16, 16), "return_loss": True}


def audio() -> Inputs:
    """Spectrograms of 8 bands and 32 frames, with a text."""
    ids = torch.randint(3, VOCABULARY, (BATCH, LENGTH))
    return {"input_features": torch.randn(BATCH, 8, 32), "labels": _labels(ids)}


def wave() -> Inputs:
    """Sound of 1,000 samples."""
    return {"input_values": torch.randn(BATCH, 1000)}


def wave_labels() -> Inputs:
    """Sound with a text."""
    return {**wave(), "labels": torch.randint(3, VOCABULARY, (BATCH, 8))}


def _labels(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[0, 2:9] = -100
    return labels


KINDS: dict[str, Callable[[], Inputs]] = {
    "tokens": tokens,
    "padded": padded,
    "image": image,
    "image32": lambda: image(32),
    "pair": pair,
    "audio": audio,
    "wave": wave,
    "wave_labels": wave_labels,
}
