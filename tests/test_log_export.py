from __future__ import annotations

from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.test_apps import run
from tests.traces.support import Collector, collector, plain

CODE = """
configure()
import logging
assert get("/items/7/").status_code == 200
try:
    raise ValueError("broken")
except ValueError:
    logging.getLogger("shop").exception("It %s", "broke", extra={"order": 7})
"""


def records(received: Collector) -> list[Any]:
    found = []
    for path, body in received.bodies:
        if path == "/v1/logs":
            for resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs:
                for scope_logs in resource_logs.scope_logs:
                    found += [(scope_logs.scope.name, record) for record in scope_logs.log_records]
    return found


def test_lines_are_sent_as_log_records_of_the_same_trace(tmp_path: Path) -> None:
    with collector() as received:
        done = run(
            CODE,
            tmp_path,
            DJANGO_OBS_LOGS_OTLP="true",
            DJANGO_OBS_FLUSH_TIMEOUT="60",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{received.port}",
        )
        sent = records(received)
        (spans,) = [body for path, body in received.bodies if path == "/v1/traces"]

    by_scope = dict(sent)
    access = by_scope["django_obs.access"]
    span = ExportTraceServiceRequest.FromString(spans).resource_spans[0].scope_spans[0].spans[-1]
    assert access.trace_id == span.trace_id
    assert access.body.string_value == "GET /items/7/ 200"
    assert (access.severity_text, access.severity_number) == ("INFO", 9)
    broken = next(record for name, record in sent if record.severity_text == "ERROR")
    attributes = {pair.key: plain(pair.value) for pair in broken.attributes}
    assert broken.body.string_value == "It broke"
    assert attributes["order"] == 7
    assert attributes["exception.type"] == "ValueError"
    # The lines themselves are still written.
    assert done.stdout.count("\n") == len(sent)


def test_collector_that_is_dead_costs_a_warning_and_no_line(tmp_path: Path) -> None:
    done = run(
        CODE,
        tmp_path,
        DJANGO_OBS_LOGS_OTLP="true",
        DJANGO_OBS_TRACES_ENABLED="false",
        DJANGO_OBS_FLUSH_TIMEOUT="60",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )

    assert done.stdout.count("\n") == 3
    assert done.stderr.count("not taken by the collector") == 1


def test_start_with_logs_and_traces_says_nothing(tmp_path: Path) -> None:
    done = run("configure()", tmp_path, DJANGO_OBS_LOGS_OTLP="true")

    assert done.stdout + done.stderr == ""
