"""The report: a page of Markdown."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version

from .ledger import Account
from .phase import Result
from .twins import ROOT, growth

HEAD = """# Faults

The example shop under load, and meanwhile something goes wrong. Beside it runs a twin without the app: each request \
goes to both, and status, body and headers are compared (but for `Date` and our \
[`X-Trace-Id`](settings.md#tracesresponse_header)). `{command}` made this page; `tests/e2e/test_soak.py` asserts a \
short round of it.

Measured at commit {commit}, on {cores} cores with much else to do; {versions}. {settings}

"""
COLUMNS = (
    *("fault", "requests", "differing", "unanswered, ours / bare", "lines: made, lost, counted"),
    *("spans: made, lost, counted", "doubled", "samples lost", "MiB", "threads", "descriptors"),
    *("p50, p99 ms bare", "p50, p99 ms ours", "exit s"),
)
FOOT = """
*Lost* is what requests that were answered should have left at the end of the pipe or in the collector and did not; \
*counted* is what the processes themselves say was lost: by their [metrics](metrics.md), by a line once lines can be \
written again, or on stderr at their exit. Where more is counted than lost, the rest belonged to requests that nobody \
waited for, or was a line about lost lines. *Doubled* counts lines and spans. *MiB*, *threads* and *descriptors* are \
those of our workers before the fault and at the end: memory of all of them together, the others of the greatest. \
Latencies are those of a machine that both twins, the clients and the collector share: they are no benchmark, \
[Performance](performance.md) has one.

Notes:

"""
NOTES = """\
- workers killed at random: nobody answers to SIGKILL. What a worker had queued is lost and nobody is left to count \
it; samples lie in shared memory and are all there. The connections that it served are cut, as without us.
- memory limited, nothing is taken: address space for our threads and the exporter, while the collector hangs and \
nobody reads stdout.
- runtime directory deleted: what was counted before is gone with it, and counters start anew within a second.
- descriptors exhausted: while the twins have none left both refuse and fail; nothing is compared then.
- clock set back: what Python code asks for the time is told an hour less, for half of the phase.
- one after the other: servers that live through faults of collector, stdout and clock again and again.
"""


def page(results: Sequence[Result], command: str, settings: str, skipped: Sequence[str]) -> str:
    """Return the whole page."""
    head = HEAD.format(command=command, commit=commit(), cores=os.cpu_count(), versions=versions(), settings=settings)
    notes = [f"- {result.fault.name}: {'; '.join(result.notes)}." for result in results if result.notes]
    notes += [f"- {name}: skipped, which needs the right to mount a file system." for name in skipped]
    notes += [f"- **{result.fault.name}: {problem}**" for result in results for problem in result.problems()]
    table = [f"| {' | '.join(COLUMNS)} |", f"|---{'|---:' * (len(COLUMNS) - 1)}|", *map(row, results)]
    return head + "\n".join(table) + "\n" + FOOT + NOTES + "".join(f"{note}\n" for note in notes)


def row(result: Result) -> str:
    """Return the row of a phase."""
    books = result.ledger
    grown = {what: f"{first:.0f} → {last:.0f}" for what, first, last in growth(result.uses["ours"])}
    samples = f"{max(0, books.samples_expected - books.samples):.0f}" if result.fault.samples else "-"
    cells = [
        result.fault.name,
        f"{result.requests}",
        f"{len(result.differing)}",
        f"{result.unanswered['ours']} / {result.unanswered['bare']}",
        account(books.lines),
        account(books.spans),
        f"{books.lines.doubled + books.spans.doubled}",
        samples,
        *(grown.get(what, "") for what in ("rss", "threads", "descriptors")),
        latency(result.seconds["bare"]),
        latency(result.seconds["ours"]),
        f"{result.to_exit:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def account(each: Account) -> str:
    return f"{each.expected}, {each.lost}, {each.counted}"


def latency(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    if not ordered:
        return "-"
    return f"{1000 * ordered[len(ordered) // 2]:.1f}, {1000 * ordered[len(ordered) * 99 // 100]:.0f}"


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def versions() -> str:
    names = ("django", "gunicorn", "uvicorn")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}, {platform.system()} {platform.release().partition('-')[0]}"
