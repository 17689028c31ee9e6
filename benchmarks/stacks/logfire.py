from __future__ import annotations

from benchmarks.project.settings import *  # noqa: F403
from benchmarks.project.settings import DATABASES


def start() -> None:
    import logfire
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    logfire.configure(
        send_to_logfire=False,
        console=False,
        metrics=False,
        additional_span_processors=[BatchSpanProcessor(OTLPSpanExporter())],
    )
    logfire.instrument_django()
    if "sqlite3" in str(DATABASES["default"]["ENGINE"]):
        logfire.instrument_sqlite3()
    else:
        logfire.instrument_psycopg()


def flush() -> None:
    import logfire

    logfire.force_flush(600_000)
