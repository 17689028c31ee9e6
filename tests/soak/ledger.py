"""The accounts of a phase: what was to be delivered, what was, and what was counted as lost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django_obs.metrics.scraper import Scraper

from .load import Sent

REQUESTS = "django_http_requests_before_middlewares_total"
# What a process says on its way out of what it could not deliver any more.
LEFT_BEHIND = re.compile(r"(logs|traces): not everything was delivered, (\d+) items")


@dataclass
class Expected:
    """How many lines and spans a request of each kind makes, as learnt where nothing went wrong."""

    lines: dict[str, int] = field(default_factory=dict)
    spans: dict[str, int] = field(default_factory=dict)


@dataclass
class Account:
    """One signal of one phase."""

    expected: int = 0
    delivered: int = 0
    lost: int = 0
    counted: int = 0  # as lost, by the processes themselves
    doubled: int = 0


@dataclass
class Ledger:
    """All that came out of a phase."""

    lines: Account = field(default_factory=Account)
    spans: Account = field(default_factory=Account)
    samples_expected: int = 0
    samples: float = 0.0
    torn: int = 0  # lines of which a part is missing
    backwards: int = 0  # spans that end before they start


def line_counts(data: bytes) -> tuple[Counter[tuple[str, str]], int, int]:
    """Return the lines by (request id, what they say), how many our own lines say were lost, and torn lines."""
    counts: Counter[tuple[str, str]] = Counter()
    lost = torn = 0
    for line in data.split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            torn += bool(line.strip()) and line.startswith(b"{")
            continue
        if not isinstance(found, dict):
            continue
        if found.get("logger") == "django_obs" and "Log lines were lost" in found.get("message", ""):
            lost += sum(found.get("dropped", {}).values()) + found.get("failed", 0)
        elif "request_id" in found:
            what = f"{found.get('logger')} {found.get('message')} {found.get('number', '')}"
            counts[found["request_id"], what] += 1
    return counts, lost, torn


def learn(sent: Iterable[Sent], data: bytes, spans: Iterable[Any]) -> Expected:
    """Return what each kind of request makes. Raises ValueError if that is not always the same."""
    counts, _, _ = line_counts(data)
    lines: Counter[str] = Counter()
    for (request_id, _), number in counts.items():
        lines[request_id] += number
    by_trace = Counter(span.trace_id.hex() for span in spans)
    found: dict[str, set[tuple[int, int]]] = {}
    for each in sent:
        found.setdefault(each.kind, set()).add((lines[each.request_id], by_trace[each.trace_id]))
    if odd := {kind: pairs for kind, pairs in found.items() if len(pairs) > 1}:
        raise ValueError(f"(lines, spans) of one kind of request differ where nothing went wrong: {odd}")
    learnt = {kind: pairs.pop() for kind, pairs in found.items()}
    return Expected({kind: pair[0] for kind, pair in learnt.items()}, {kind: pair[1] for kind, pair in learnt.items()})


def balance(
    sent: list[Sent], data: bytes, spans: list[Any], said: str, store: Path | None, expected: Expected
) -> Ledger:
    """Make the account of a phase that answers its requests."""
    ledger = Ledger()
    counts, told, ledger.torn = line_counts(data)
    answered = [each for each in sent if each.status is not None]
    per_request: Counter[str] = Counter()
    for (request_id, _), number in counts.items():
        per_request[request_id] += number
    lines = ledger.lines
    known = {each.request_id for each in sent}
    lines.doubled = sum(number - 1 for (request_id, _), number in counts.items() if request_id in known)
    for each in answered:
        wanted = expected.lines[each.kind]
        lines.expected += wanted
        lines.delivered += per_request[each.request_id]
        lines.lost += max(0, wanted - per_request[each.request_id])
    by_trace: Counter[str] = Counter()
    for span in spans:
        by_trace[span.trace_id.hex()] += 1
        ledger.backwards += span.end_time_unix_nano < span.start_time_unix_nano
    account = ledger.spans
    account.doubled = len(spans) - len({(span.trace_id, span.span_id) for span in spans})
    for each in answered:
        wanted = expected.spans[each.kind]
        account.expected += wanted
        account.delivered += by_trace[each.trace_id]
        account.lost += max(0, wanted - by_trace[each.trace_id])
    ledger.samples_expected = len(answered)
    left = {"logs": 0, "traces": 0}
    for name, number in LEFT_BEHIND.findall(said):
        left[name] += int(number)
    totals = store_totals(store) if store is not None else {}
    lines.counted = max(told, round(totals.get("lines", 0))) + left["logs"]
    account.counted = round(totals.get("spans", 0)) + left["traces"]
    ledger.samples = totals.get("samples", 0.0)
    return ledger


def store_totals(directory: Path) -> dict[str, float]:
    """Return requests, lost lines and lost spans as the metrics of all processes have them."""
    names = {
        REQUESTS: "samples",
        "django_obs_log_records_dropped_total": "lines",
        "django_obs_log_records_failed_total": "lines",
        "django_obs_spans_dropped_total": "spans",
        "django_obs_spans_failed_total": "spans",
    }
    found: dict[str, float] = {}
    with suppress(OSError):
        page = Scraper(lambda: directory).read()
        for family in page.families:
            key = names.get(family.name + "_total")
            if key is not None:
                found[key] = found.get(key, 0.0) + sum(page.totals[row.slot] for row in family.rows())
    return found


def total(directory: Path, name: str) -> tuple[float, int]:
    """Return the sum of a counter over all processes and labels, and how many series it has."""
    page = Scraper(lambda: directory).read()
    rows = [(row, page) for family in page.families if family.name + "_total" == name for row in family.rows()]
    return sum(page.totals[row.slot] for row, page in rows), len(rows)
