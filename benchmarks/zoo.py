"""Partition tiny random versions of public models, unmodified, and print how exact every plan is.

    python benchmarks/zoo.py                             every model
    python benchmarks/zoo.py --only llama --only t5      those whose names hold one of these words
    python benchmarks/zoo.py --write docs/models.md      write the table there
    python benchmarks/zoo.py --json                      one line of JSON a model

All ranks run in one process. Exact are the loss, every gradient, their norm, the outputs, and the parameters after a
step of AdamW, relative to the whole model's: 1e-9 in float64. Exit status 1 if a model that is captured is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import torch
import transformers
from models import trial as trials
from models.entries import Entry, entries
from models.trial import DROPOUT, NONE, PLANS, Trial

HEAD = """# Models

Made by `benchmarks/zoo.py`: tiny random versions of public classes, unmodified, on all ranks of each plan in one
process. A number is the largest relative error of the loss, of any gradient on any rank, of their norm, of an output,
or of a parameter after a step of AdamW, against the whole model on one device. Nothing in fxpar knows any of them.
`make zoo` makes this page.

- **split**: the share of the bytes of all linear, expert and embedding weights that `tp 2` splits.
- **a layer**: collectives of whole activations in one layer at `tp 2` without sequence parallelism, forward and
  backward together (two blocks that are each column- and row-parallel have 4), `+` smaller ones.
- **dropout**: {dropout} everywhere, `{plan}`, with the masks that the ranks drew replayed in the whole model.

{versions}, {dtype} unless noted.
"""


@click.command()
@click.option("--only", multiple=True, help="A word that a name must hold; several: one of them.")
@click.option(
    "--column", "columns", multiple=True, type=click.Choice([*PLANS]), help="A plan; by default all."
)
@click.option("--dropout/--no-dropout", default=True, help="Try each model with dropout as well.")
@click.option("--jobs", default=2, help="Processes at a time.")
@click.option("--write", type=click.Path(path_type=Path), help="A Markdown file to write the table to.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def main(
    only: Sequence[str], columns: Sequence[str], dropout: bool, jobs: int, write: Path | None, as_json: bool
) -> None:
    """Partition public models and print how exact every plan is."""
    chosen = [e for e in entries() if not only or any(word in e.label for word in only)]
    columns = columns or [*PLANS]
    done = []
    for result in _run(chosen, columns, dropout, jobs):
        print(json.dumps(asdict(result)) if as_json else line(result), flush=True)
        done.append(result)
    if write:
        write.write_text(page(done, columns, dropout), encoding="utf-8")
    failed = [result.label for result in done if not result.refused and not result.exact]
    print(
        f"{len(done)} models, {len(failed)} with something wrong: {', '.join(failed) or 'none'}",
        file=sys.stderr,
    )
    sys.exit(1 if failed else 0)


def _run(chosen: Sequence[Entry], columns: Sequence[str], dropout: bool, jobs: int) -> Iterable[Trial]:
    work = partial(trials.run, columns=columns, dropout=dropout)
    if jobs == 1:
        yield from map(work, chosen)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(work, chosen)


def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def line(trial: Trial) -> str:
    """One model as a line for people, and under it what went wrong."""
    if trial.refused:
        return f"{trial.label:36} not captured\n    " + trial.refused.replace("\n", "\n    ")
    cells = [f"{column} {cell(error)}" for column, error in trial.errors.items()]
    said = [error for error in trial.errors.values() if isinstance(error, str) and error != NONE]
    head = (
        f"{trial.label:36} {trial.split:4.0%}  {_layer(trial):>7}  {'  '.join(cells)}  {trial.seconds:.0f} s"
    )
    return "\n    ".join([head, *dict.fromkeys(said)])


def cell(error: float | str) -> str:
    """An error for a table."""
    if error == NONE:
        return NONE
    return "refused" if isinstance(error, str) else f"{error:.0e}"


def _layer(trial: Trial) -> str:
    return f"{trial.large:.0f}" + (f" + {trial.small:.0f}" if trial.small else "")


def page(done: Sequence[Trial], columns: Sequence[str], dropout: bool) -> str:
    """The page with the table, and below it what was refused and why."""
    names = [*columns, *(["dropout"] if dropout else [])]
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    head = HEAD.format(dropout=DROPOUT, plan="tp 2, pp 2", versions=versions, dtype="float64")
    rows = ["| model | axes | split | a layer | " + " | ".join(names) + " |", "|---" * (4 + len(names)) + "|"]
    rows += [_row(trial, names) for trial in done if not trial.refused]
    return "\n".join([head, *rows, "", *_refusals(done)])


def _row(trial: Trial, names: Sequence[str]) -> str:
    label = trial.label if trial.dtype == "float64" else f"{trial.label} ({trial.dtype})"
    axes = ", ".join(trial.axes)
    cells = [cell(trial.errors[name]) for name in names]
    return f"| {label} | {axes} | {trial.split:.0%} | {_layer(trial)} | {' | '.join(cells)} |"


def _refusals(done: Sequence[Trial]) -> list[str]:
    """What was said of plans and models that are refused."""
    said: dict[str, list[str]] = {}
    for trial in done:
        for text in [trial.refused, *trial.errors.values()]:
            if isinstance(text, str) and text not in ("", NONE):
                said.setdefault(text, []).append(trial.label)
    if not said:
        return []
    blocks = [
        f"{', '.join(dict.fromkeys(labels))}:\n\n```text\n{text}\n```\n" for text, labels in said.items()
    ]
    return ["## Refused\n", *blocks]


if __name__ == "__main__":
    main()
