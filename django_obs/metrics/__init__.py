"""Counter.inc() -> slot in this process's lane (shared memory)  =>  runmetrics: sum of all lanes -> scrape."""

from __future__ import annotations
