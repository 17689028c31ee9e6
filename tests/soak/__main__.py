"""``python -m tests.soak``: all faults in turn, within so many seconds of load; a report; status 1 for a defect."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import report
from .faults import FAULTS, can_mount
from .ledger import Expected
from .phase import Phase, Result
from .twins import make_database

# How many shares of the time the last phase takes, in which servers live through many faults.
LONG = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of load, all phases together")
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second, to each of the two servers")
    parser.add_argument("--labels", type=int, default=20_000, help="distinct label values")
    parser.add_argument("--connections", type=int, default=1000, help="ASGI connections to cancel")
    parser.add_argument("--only", default="", help="part of a fault's name")
    parser.add_argument("--report", type=Path, help="the page to write")
    parser.add_argument("--verbose", action="store_true", help="print what our servers said on stderr")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if arguments.only in fault.name or fault.name == "none"]
    mounts = can_mount()
    skipped = [fault.name for fault in chosen if fault.needs_root and not mounts]
    chosen = [fault for fault in chosen if fault.name not in skipped]
    shares = sum(LONG if fault is FAULTS[-1] else 1 for fault in chosen)
    results: list[Result] = []
    expected: Expected | None = None
    with tempfile.TemporaryDirectory(prefix="django_obs-soak-") as directory:
        database = make_database(Path(directory))
        for number, fault in enumerate(chosen):
            seconds = arguments.seconds / shares * (LONG if fault is FAULTS[-1] else 1)
            phase = Phase(
                fault,
                seconds,
                Path(directory, f"{number:02d}"),
                database,
                rate=arguments.rate,
                labels=arguments.labels,
                connections=arguments.connections,
            )
            result, expected = phase.run(expected)
            results.append(result)
            print(report.row(result), flush=True)
            for problem in result.problems():
                print(f"    {problem}", flush=True)
            if arguments.verbose:
                print("\n".join([*result.notes, result.said]), flush=True)
    if arguments.report:
        words = f"{arguments.seconds:g} seconds of load at {arguments.rate:g} requests a second to each of the two."
        arguments.report.write_text(
            report.page(results, f"python -m tests.soak {' '.join(sys.argv[1:])}", words, skipped)
        )
    return 1 if any(result.problems() for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
