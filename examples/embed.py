"""Embed sentences with a partition of a sentence encoder, on all of its ranks:

    torchrun --nproc-per-node 4 examples/embed.py PARTITION RESULT.safetensors

The partition's folder has the model's tokenizer beside its weights. Pooling is outside of the model, as
sentence-transformers does it: the mean of the hidden states of a sentence's tokens, scaled to length one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import fxpar

SENTENCES = (
    "A man is playing a guitar on stage.",
    "Someone performs music in front of an audience.",
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sunshine.",
    "Interest rates rose by a quarter of a percent.",
    "The central bank made borrowing more expensive.",
    "How do I reset the password of my account?",
    "I cannot log in and need new credentials.",
)
#: The tokens that every sentence is padded to.
LENGTH = 32


def tokens(folder: Path) -> dict[str, Tensor]:
    """The sentences as `input_ids` and `attention_mask`, each [sentences, LENGTH]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(list(SENTENCES), padding="max_length", max_length=LENGTH, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """One vector of length one for each sentence: [sentences, hidden], of states [sentences, tokens, hidden]."""
    counted = mask.unsqueeze(-1).to(states.dtype)
    return F.normalize((states * counted).sum(1) / counted.sum(1), dim=1)


def main(folder: Path, result: Path) -> None:
    """Run this process's rank, and write the embeddings from one rank of the last stage."""
    with fxpar.together(device="cpu") as device:
        batch = tokens(folder)
        rank = fxpar.load(folder, device=device)
        _, outputs = rank.evaluate(batch)
        if outputs is not None and dist.get_rank() == dist.get_world_size() - 1:
            embeddings = pooled(outputs["last_hidden_state"], batch["attention_mask"])
            save_file({"embeddings": embeddings.contiguous()}, result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
