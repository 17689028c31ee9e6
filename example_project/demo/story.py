"""One request, told three times: as line, as trace and as samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from example_project.demo.receiver import ReceivedSpan

WIDTH = 110


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the JSON lines of a file, without a last one that is still being written."""
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n"):
            yield json.loads(line)


def tell_lines(lines: Iterable[dict[str, Any]]) -> Iterator[str]:
    for line in lines:
        yield json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def tell_trace(spans: list[ReceivedSpan]) -> Iterator[str]:
    """Draw a trace as a tree: start and duration in milliseconds, kind, name, and the statement of a query."""
    ids = {span.span_id for span in spans}
    start = min(span.start for span in spans)

    def branch(parents: list[ReceivedSpan], indent: str) -> Iterator[str]:
        for span in parents:
            text = f"{(span.start - start) / 1e6:8.2f} ms {span.milliseconds:8.2f} ms  {indent}{span.kind} {span.name}"
            statement = span.attributes.get("db.query.text")
            if statement and statement != span.name:
                text += f"  {statement}"
            if span.status == "ERROR":
                text += "  ERROR"
            yield text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
            yield from branch([child for child in spans if child.parent_id == span.span_id], indent + "  ")

    yield from branch([span for span in spans if span.parent_id not in ids], "")


def count_workers(page: str) -> int:
    """Return how many live processes serve requests."""
    return len(re.findall(r'^process_start_time_seconds\{.*role="web"', page, flags=re.MULTILINE))


def tell_samples(page: str, *, view: str, trace_id: str) -> Iterator[str]:
    """Pick the samples of one view, and first of all those whose exemplar is this very trace."""
    wanted = re.compile(
        r"django_http_(requests_total_by_view_transport_method|responses_total_by_status_view_method"
        r"|requests_latency_seconds_by_view_method)_(total|count|sum)\b"
    )
    samples = [line for line in page.splitlines() if line and not line.startswith("#")]
    yield from (line for line in samples if trace_id in line)
    yield from (line for line in samples if wanted.match(line) and f'view="{view}"' in line)
    yield from (line for line in samples if line.startswith("shop_items_sold_total"))
