"""Export requests as senders make them, with the official classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

SERVER, CLIENT, CONSUMER = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_CONSUMER
SECOND = 1_000_000_000
EPOCH = 1_800_000_000 * SECOND


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def span_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def value(given: Any) -> AnyValue:
    match given:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=given)
        case int():
            return AnyValue(int_value=given)
        case float():
            return AnyValue(double_value=given)
        case bytes():
            return AnyValue(bytes_value=given)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(value, given)))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(given)))
    return AnyValue(string_value=given)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value(given)) for key, given in attributes.items()]


def span(
    trace: int = 1,
    number: int = 1,
    *,
    parent: int = 0,
    name: str = "GET /",
    kind: int = SERVER,
    seconds: float = 0.1,
    start: int = EPOCH,
    error: bool = False,
    flags: int = 0x100,
    **attributes: Any,
) -> Span:
    return Span(
        trace_id=trace_id(trace),
        span_id=span_id(number),
        parent_span_id=span_id(parent) if parent else b"",
        name=name,
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(seconds * SECOND),
        status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET),
        flags=flags,
        attributes=pairs({key.replace("__", "."): given for key, given in attributes.items()}),
    )


def record(
    message: Any = "Hello", *, trace: int = 0, span: int = 0, severity: int = 9, start: int = EPOCH, **fields: Any
) -> LogRecord:
    return LogRecord(
        time_unix_nano=start,
        severity_number=severity,
        body=value(message),
        trace_id=trace_id(trace) if trace else b"",
        span_id=span_id(span) if span else b"",
        attributes=pairs(fields),
    )


def resource(service: str) -> Resource:
    return Resource(attributes=pairs({"service.name": service, "process.pid": 4711}))


def traces_request(*spans: Span, service: str = "shop", scope: str = "django_obs") -> ExportTraceServiceRequest:
    scoped = ScopeSpans(spans=spans)
    scoped.scope.name = scope
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource(service), scope_spans=[scoped])])


def traces(*spans: Span, service: str = "shop") -> bytes:
    return traces_request(*spans, service=service).SerializeToString()


def logs(*records: LogRecord, service: str = "shop", logger: str = "shop.cart") -> bytes:
    scoped = ScopeLogs(log_records=records)
    scoped.scope.name = logger
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=resource(service), scope_logs=[scoped])]
    ).SerializeToString()
