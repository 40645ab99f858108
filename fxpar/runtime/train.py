"""What the run.py of a partition does: train it for some steps, or evaluate it, on all ranks."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from fxpar.checkpoint.index import NAME
from fxpar.emit.staging import check_target
from fxpar.errors import CheckpointError, RankError
from fxpar.runtime import tracing
from fxpar.runtime.batches import Batch, batches
from fxpar.runtime.groups import Groups, alone
from fxpar.runtime.load import load
from fxpar.runtime.manifest import Manifest
from fxpar.runtime.processes import connect
from fxpar.runtime.rank import Rank
from fxpar.runtime.restore import resume
from fxpar.runtime.save import save
from fxpar.runtime.together import START, USED_WRONGLY, World
from fxpar.runtime.training import NAME as STATE
from fxpar.runtime.training import Training

#: The learning rate unless told otherwise.
RATE = 1e-3
EPILOG = """\b
Examples:
  torchrun --nproc-per-node 4 out/run.py
  torchrun --nproc-per-node 4 out/run.py --steps 100 --lr 3e-4 --batch a.safetensors --batch b.safetensors
  torchrun --nproc-per-node 4 out/run.py --evaluate --json
  torchrun --nproc-per-node 4 out/run.py --steps 10 --clip 1.0 --save checkpoint
  torchrun --nproc-per-node 8 other/run.py --load checkpoint --steps 1000 --save runs --save-every 100
"""


def main(folder: Path, arguments: Sequence[str] | None = None) -> None:
    """Run the partition in a folder, with options from the command line; ends the process where something fails.

    Started by torchrun, with as many processes as the mesh has ranks, or by itself for one rank. All ranks fail
    together: the first error is printed once, with its rank.
    """
    world = World.of_environment()
    try:
        options = _command.main(arguments, prog_name="run.py", standalone_mode=False)
    except click.ClickException as error:
        with world.together(f"rank {world.rank}"):
            raise RankError(error.format_message(), details=["--help lists the options"]) from error
    except click.Abort:
        sys.exit(USED_WRONGLY)
    if isinstance(options, dict):
        run(Path(folder), World.of_environment(options["timeout"], options["start"]), options)


@click.command(epilog=EPILOG)
@click.option("--steps", type=click.IntRange(min=0), default=3, show_default=True, help="Steps of training.")
@click.option("--lr", type=float, help=f"The learning rate of AdamW. Default: {RATE}, or the checkpoint's.")
@click.option("--clip", type=float, help="Scale gradients so that their global norm is at most this.")
@click.option(
    "--batch",
    "files",
    multiple=True,
    metavar="FILE",
    help="A batch: a .safetensors or .npz file with tensors by input name. Several are taken in turn. "
    "Without any, the example that the model was captured with.",
)
@click.option("--evaluate", is_flag=True, help="Run forward only, once for each batch.")
@click.option("--compile", "compiled", is_flag=True, help="Compile layers by torch.compile, each class once.")
@click.option(
    "--load",
    "checkpoint",
    metavar="DIR",
    help="Read parameters from a checkpoint of any mesh, and go on with the training whose state it has.",
)
@click.option("--save", "target", metavar="DIR", help="Write a checkpoint to a new folder at the end.")
@click.option(
    "--save-every",
    "every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Save every N steps and at the end, to DIR/step-00010 and so on.",
)
@click.option(
    "--trace",
    "traced",
    metavar="FILE",
    help="Write when each stage ran as a Chrome trace, as `fxpar schedule` does of its plan.",
)
@click.option("--device", metavar="TYPE", help="cpu, or a type of accelerator. Default: the accelerator.")
@click.option(
    "--timeout", type=float, default=120.0, show_default=True, help="Seconds that a collective may take."
)
@click.option(
    "--start-timeout",
    "start",
    type=float,
    default=START,
    show_default=True,
    help="Seconds to wait for the next rank to start.",
)
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line.")
def _command(**options: Any) -> dict[str, Any]:
    """Train this partition for some steps, or evaluate it. One rank prints the loss of each step."""
    return options


def run(folder: Path, world: World, options: dict[str, Any]) -> None:
    """Run a partition in this process of a world; see `main`."""
    with world.together(f"rank {world.rank}"):
        manifest = Manifest.read(folder)
        _check_world(manifest, world, folder)
    with world.together(rank_name(manifest, world.rank)):
        state = _state(options)
        start = (state.step or 0) if state else 0
        if world.rank == 0:
            for target in _targets(options, start).values():
                check_target(target, force=None)
            _check_file(options["traced"])
        given = batches(folder, manifest, options["files"])
        device = world.device(options["device"])
        groups = _groups(manifest, world, device)
        rank = load(folder, groups, device, options["checkpoint"])
        if options["compiled"]:
            rank.compile()
        if options["traced"]:
            tracing.record(rank)
        if options["evaluate"]:
            _evaluate(rank, given, options)
        else:
            _train(rank, given, options, state)
        if options["traced"]:
            tracing.write(rank, Path(options["traced"]))
        groups.close()
        world.close()


def _check_file(name: str | None) -> None:
    """Raise RankError for a file to write that has no folder."""
    if name is not None and (not Path(name).absolute().parent.is_dir() or Path(name).is_dir()):
        raise RankError(f"{name} cannot be written", details=["it has to be a file in a folder that exists"])


def rank_name(manifest: Manifest, rank: int) -> str:
    """What a rank is called in a message: `rank 3 (stage 1, tp 1)`."""
    spot = manifest.grid.coordinate(rank)
    stages = [str(stage.index) for stage in manifest.stages_of(rank)]
    words = [f"{'stage' if len(stages) == 1 else 'stages'} {' and '.join(stages)}"]
    words += [f"{dim} {at}" for dim, at in spot.items() if manifest.mesh[dim] > 1 and dim != "pp"]
    return f"rank {rank} ({', '.join(words)})"


def _check_world(manifest: Manifest, world: World, folder: Path) -> None:
    """Raise RankError unless there are as many processes as ranks."""
    ranks = manifest.grid.world
    if world.size != ranks:
        mesh = " x ".join(f"{dim} {size}" for dim, size in manifest.mesh.items() if size > 1) or "one rank"
        run = "1 process runs" if world.size == 1 else f"{world.size} processes run"
        raise RankError(
            f"this partition is for {ranks} ranks ({mesh}), but {run}",
            details=[f"torchrun --nproc-per-node {ranks} {folder.name}/run.py"],
        )


def _groups(manifest: Manifest, world: World, device: torch.device) -> Groups:
    if world.size == 1:
        return alone(manifest.grid)
    world.connect(device, partial(rank_name, manifest))
    return connect(manifest.grid, manifest.groups, device=device, timeout=world.timeout)


def _state(options: dict[str, Any]) -> Training | None:
    """The state of training to go on from. Raises CheckpointError for one that this script did not save."""
    if options["every"] and not options["target"]:
        raise RankError("--save-every needs a folder", details=["--save DIR"])
    if options["evaluate"] and options["target"]:
        raise RankError("--evaluate trains nothing to --save")
    folder = Path(options["checkpoint"]) if options["checkpoint"] else None
    if folder is None or options["evaluate"] or not all((folder / name).is_file() for name in (NAME, STATE)):
        return None
    state = Training.read(folder)
    if state.scheduler is not None:
        what = f"{folder} was trained with a {state.scheduler['class']}, which run.py has not"
        raise CheckpointError(
            what, details=["go on in a script of your own: `module.restore(checkpoint, ...)`"]
        )
    return state


def _targets(options: dict[str, Any], start: int) -> dict[int, Path]:
    """Where to save after which step."""
    if not options["target"]:
        return {}
    target, end, every = Path(options["target"]), start + options["steps"], options["every"]
    if every is None:
        return {end: target}
    numbers = {*range(start + every - start % every, end + 1, every), end}
    return {number: target / f"step-{number:05d}" for number in sorted(numbers)}


def _train(rank: Rank, given: list[Batch], options: dict[str, Any], state: Training | None) -> None:
    if rank.manifest.loss is None:
        raise RankError("the model has no loss to train on", details=["--evaluate runs it forward"])
    learning = [parameter for parameter in rank.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=options["lr"] or RATE) if learning else None
    start = _resume(rank, optimizer, options, state) if state else 0
    targets, clip = _targets(options, start), options["clip"]
    for step in range(start, start + options["steps"]):
        rank.zero_grad()
        loss = rank.step(given[step % len(given)])
        norm = rank.clip_gradients_(clip) if clip is not None else rank.gradient_norm()
        if optimizer is not None:
            optimizer.step()
        _say(rank, options, step=step + 1, loss=loss.item(), gradient_norm=norm.item())
        if step + 1 in targets:
            save(rank, targets.pop(step + 1), optimizer=optimizer, step=step + 1)
    for number, target in targets.items():
        save(rank, target, optimizer=optimizer, step=number)


def _resume(
    rank: Rank, optimizer: torch.optim.Optimizer | None, options: dict[str, Any], state: Training
) -> int:
    """Go on from a checkpoint; return its step."""
    known = optimizer if state.optimizer is not None else None
    step = resume(rank, Path(options["checkpoint"]), optimizer=known)
    for group in optimizer.param_groups if optimizer and options["lr"] is not None else ():
        group["lr"] = options["lr"]
    return step or 0


def _evaluate(rank: Rank, given: list[Batch], options: dict[str, Any]) -> None:
    for number, batch in enumerate(given, 1):
        loss, _ = rank.evaluate(batch)
        outputs = {
            spec.name: f"{spec.dtype}{list(spec.shape)}" for spec in rank.manifest.outputs if spec.dtype
        }
        told = {"loss": loss.item()} if loss is not None else {"outputs": outputs}
        _say(rank, options, batch=number, **told)


def _say(rank: Rank, options: dict[str, Any], **values: Any) -> None:
    """Print a line, on one rank only."""
    if rank.groups.rank:
        return
    words = (f"{key.replace('_', ' ')} {_word(value)}" for key, value in values.items())
    click.echo(json.dumps(values) if options["as_json"] else "  ".join(words))


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return f"{value:.6f}" if isinstance(value, float) else str(value)
