"""Gives a checkpoint another layout where fxpar is not installed: a checkout, Python and numpy are all it needs.

    python tools/reshard.py checkpoint other --tp 4 --pp 1
    python tools/reshard.py checkpoint other --to hf

The same as `fxpar reshard`, whose `--help` says more. A plan (`--plan`) needs pyyaml as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxpar.checkpoint.request import Request, said, size, stopped
from fxpar.checkpoint.reshard import reshard
from fxpar.errors import FxparError

WRONG, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 2 refused, 130 interrupted."""
    given = _parser().parse_args(arguments)
    sizes = {dim: getattr(given, dim) for dim in ("tp", "pp", "ep") if getattr(given, dim) is not None}
    request = Request(sizes, given.vpp, given.plan, given.like, given.to == "hf", given.max_shard_size)
    try:
        report = reshard(
            given.source,
            given.destination,
            request.target(),
            hf=request.hf,
            resume=given.resume,
            force=given.force,
            dry_run=given.dry_run,
        )
    except (FxparError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print(f"\n{stopped()}", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(asdict(report), indent=2) if given.json else said(report, dry=given.dry_run))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    for dim in ("tp", "pp", "ep", "vpp"):
        parser.add_argument(f"--{dim}", type=int, metavar="N")
    parser.add_argument("--plan", type=Path, metavar="FILE")
    parser.add_argument("--like", type=Path, metavar="DIR")
    parser.add_argument("--to", choices=["hf"])
    parser.add_argument("--max-shard-size", type=size, default=size("50GB"), metavar="SIZE")
    for flag in ("--resume", "--force", "--dry-run", "--json"):
        parser.add_argument(flag, action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
