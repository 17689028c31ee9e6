"""OTLP over HTTP, as far as a receiver of https://opentelemetry.io/docs/specs/otlp/#otlphttp has to speak it."""

from __future__ import annotations

import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import import_module
from typing import Any, Final

from django_obs.runtime import ROLE_HEADER
from django_obs.server.recent import Recent, parsed

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
# A batch of ours is half of it at most, one of 512 spans of the SDK a tenth.
BODY_BYTES: Final = 4 * 1024 * 1024
# What it may be once unzipped. Spans of one service shrink to a tenth, so that this is what fits into the above.
UNZIPPED_BYTES: Final = 16 * 1024 * 1024
# Who appends to gzip files as it goes has some; each costs a copy of all that follows.
GZIP_MEMBERS: Final = 64
# How one of our processes tells what it is, as WSGI has it.
ROLE: Final = "HTTP_" + ROLE_HEADER.upper().replace("-", "_")
HEX_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What the sender is answered."""

    status: HTTPStatus
    body: bytes
    content_type: str
    headers: list[tuple[str, str]] = field(default_factory=list)


class Refusal(Exception):
    """A request that is not taken; the status tells the sender whether another attempt is worth it: it is not."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: tuple[str, str]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = list(headers)


class Receiver:
    """Takes what any OTLP sender sends."""

    def __init__(self, recent: Recent) -> None:
        self.recent = recent
        # One at a time: what is unzipped and parsed takes many times the memory of what was sent.
        self._taking = threading.Lock()

    def traces(self, environ: Mapping[str, Any]) -> Reply:
        """Take spans."""
        return self._answer(environ, self._take_traces)

    def logs(self, environ: Mapping[str, Any]) -> Reply:
        """Take log records."""
        return self._answer(environ, self._take_logs)

    def refuse(self, environ: Mapping[str, Any], status: HTTPStatus, reason: str) -> Reply:
        """Say why not, in the encoding of the request."""
        return _reply(environ, status, encoded_status(reason), {"message": reason})

    def _answer(self, environ: Mapping[str, Any], take: Callable[[Mapping[str, Any], str, bytes], Reply]) -> Reply:
        try:
            kind = _media_type(environ)
            if kind not in (PROTOBUF, JSON):
                raise Refusal(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{kind[:100]!r} is not understood, {PROTOBUF} and {JSON} are."
                )
            body = _body(environ)
            with self._taking:
                return take(environ, kind, _unzipped(environ, body))
        except Refusal as refusal:
            reply = self.refuse(environ, refusal.status, str(refusal))
            reply.headers.extend(refusal.headers)
            return reply
        except ValueError as error:
            return self.refuse(environ, HTTPStatus.BAD_REQUEST, f"This is {error}")

    def _take_traces(self, environ: Mapping[str, Any], kind: str, body: bytes) -> Reply:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

        request = _parsed(service.ExportTraceServiceRequest, kind, body)
        refused = self.recent.add_trace_request(request, role=_role(environ))
        response = service.ExportTraceServiceResponse()
        if refused:
            response.partial_success.rejected_spans = refused
            response.partial_success.error_message = "Spans without a trace id or a span id."
        partial = {"rejectedSpans": str(refused), "errorMessage": response.partial_success.error_message}
        return _accepted(environ, response.SerializeToString(), partial if refused else None)

    def _take_logs(self, environ: Mapping[str, Any], kind: str, body: bytes) -> Reply:
        from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as service

        request = _parsed(service.ExportLogsServiceRequest, kind, body)
        refused = self.recent.add_log_request(request, role=_role(environ))
        response = service.ExportLogsServiceResponse()
        if refused:
            response.partial_success.rejected_log_records = refused
            response.partial_success.error_message = "Records that are too large."
        partial = {"rejectedLogRecords": str(refused), "errorMessage": response.partial_success.error_message}
        return _accepted(environ, response.SerializeToString(), partial if refused else None)


def encoded_status(message: str) -> bytes:
    """Return a ``google.rpc.Status`` with a message: what the specification wants as the body of an error."""
    from django_obs.traces.encoder import delimited, text_bytes

    return delimited(b"\x12", text_bytes(message))


def _accepted(environ: Mapping[str, Any], encoded: bytes, partial: Mapping[str, str] | None) -> Reply:
    return _reply(environ, HTTPStatus.OK, encoded, {"partialSuccess": partial} if partial else {})


def _reply(environ: Mapping[str, Any], status: HTTPStatus, encoded: bytes, plain: Mapping[str, object]) -> Reply:
    if _media_type(environ) == JSON:
        import json

        return Reply(status, json.dumps(plain).encode(), JSON)
    return Reply(status, encoded, PROTOBUF)


def _media_type(environ: Mapping[str, Any]) -> str:
    return str(environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower()


def _role(environ: Mapping[str, Any]) -> str:
    given = str(environ.get(ROLE, ""))
    return given if given.isalnum() and len(given) <= 32 else ""


def _body(environ: Mapping[str, Any]) -> bytes:
    length = str(environ.get("CONTENT_LENGTH") or "0")
    if not (length.isascii() and length.isdecimal()):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The Content-Length is no number.")
    if len(length) > 18 or int(length) > BODY_BYTES:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {BODY_BYTES} bytes.")
    body: bytes = environ["wsgi.input"].read(int(length))
    return body


def _unzipped(environ: Mapping[str, Any], body: bytes) -> bytes:
    encoding = str(environ.get("HTTP_CONTENT_ENCODING", "identity")).strip().lower()
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"The encoding {encoding[:100]!r} is not understood, gzip is.",
            ("Accept-Encoding", "gzip"),
        )
    parts: list[bytes] = []
    left = UNZIPPED_BYTES
    # A gzip file may be several, one after the other.
    while body:
        if len(parts) == GZIP_MEMBERS:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is more than {GZIP_MEMBERS} gzip members.")
        stream = zlib.decompressobj(wbits=31)
        try:
            # One byte more than there may be: so a bomb is known before it bursts.
            parts.append(stream.decompress(body, left + 1))
        except zlib.error as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"The body is not gzip: {error}") from None
        left -= len(parts[-1])
        if left < 0:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {UNZIPPED_BYTES} bytes once unzipped."
            )
        if not stream.eof:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The body is not gzip: it ends too early.")
        body = stream.unused_data
    return b"".join(parts)


def _parsed(kind: Any, media_type: str, body: bytes) -> Any:
    return parsed(kind, body) if media_type == PROTOBUF else from_json(kind, body)


def from_json(kind: Any, body: bytes) -> Any:
    """Return the message of this kind that JSON encodes as OTLP does. Raises ValueError."""
    import json

    # It has no types, and comes with the classes of OpenTelemetry.
    json_format: Any = import_module("google.protobuf.json_format")
    try:
        content = json.loads(body)
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        _translate_ids(content)
        return json_format.ParseDict(content, kind(), ignore_unknown_fields=True, max_recursion_depth=100)
    except Exception as error:
        # The parser raises what the slip of the sender happens to make of its code.
        raise ValueError(f"not an {kind.DESCRIPTOR.name}: {str(error)[:500]}") from None


def _translate_ids(content: dict[str, Any]) -> None:
    """Write ids as protobuf's JSON has bytes: OTLP has them in hexadecimal."""
    waiting: list[Any] = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            for key, value in each.items():
                if key in HEX_IDS and isinstance(value, str):
                    each[key] = b64encode(bytes.fromhex(value)).decode()
                else:
                    waiting.append(value)
