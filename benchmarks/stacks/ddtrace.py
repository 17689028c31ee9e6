from __future__ import annotations

import os

from benchmarks.project.settings import *  # noqa: F403


def start() -> None:
    os.environ |= {
        "DD_TRACE_AGENT_URL": os.environ["BENCH_SINK_URL"],
        "DD_TRACE_SAMPLE_RATE": "1.0",
        "DD_TRACE_RATE_LIMIT": "-1",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    }
    import ddtrace.auto  # noqa: F401


def flush() -> None:
    import ddtrace.trace

    ddtrace.trace.tracer.flush()
