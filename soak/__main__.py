"""`python -m soak [TRIAL...] [--seed N] [--size X]`: runs the trials named, or all; exits 1 where one found a fault."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from soak.trial import Options, Outcome

TRIALS: tuple[str, ...] = ("kills", "storm", "history", "profiles", "hostile", "ledger", "projects")
"""Modules of this package with a `run(options: Options) -> Outcome`, in the order in which they run."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=", ".join(TRIALS))
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default 1)")
    parser.add_argument("--size", type=float, default=1.0, help="share of the whole trial (default 1.0)")
    arguments = parser.parse_args()
    if unknown := set(arguments.trials) - set(TRIALS):
        parser.error(f"there is no trial {', '.join(sorted(unknown))}; there are: {', '.join(TRIALS)}")
    failed = 0
    for name in arguments.trials or TRIALS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"soak-{name}-") as folder:
            module = importlib.import_module(f"soak.{name}")
            outcome: Outcome = module.run(Options(Path(folder), arguments.seed, arguments.size))
        print(f"{name}: {'FAILED' if outcome.wrong else 'passed'} in {time.monotonic() - started:.0f} s")
        for what, figure in outcome.figures.items():
            print(f"  {what}: {figure}")
        for what in outcome.wrong:
            print(f"  WRONG: {what}")
        failed += bool(outcome.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
