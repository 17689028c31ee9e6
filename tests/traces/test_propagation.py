from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from django_obs.traces.propagation import extract, parse_traceparent, uses_default_propagators

from .support import make_provider

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
officials = TraceContextTextMapPropagator()
hexadecimal = st.text("0123456789abcdef")


def officially(header: str, state: str | None) -> Any:
    carrier = {"traceparent": header} | ({} if state is None else {"tracestate": state})
    context = get_current_span(officials.extract(carrier, Context())).get_span_context()
    return context if context.is_valid else None


@pytest.mark.parametrize(
    "header",
    [
        PARENT,
        f" {PARENT}\t",
        PARENT + "-extra",
        "cc" + PARENT[2:] + "-what-comes-later",
        "ff" + PARENT[2:],
        PARENT.upper(),
        PARENT[:-1],
        PARENT + "0",
        PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        PARENT.replace("b7ad6b7169203331", "0" * 16),
        PARENT.replace("b7ad6b7169203331", "+7ad6b716920333_"),
        PARENT[:-2] + "ff",
        "",
        "\u0661" * 55,
    ],
)
@pytest.mark.parametrize("state", [None, "", "a=1,b=2", "a=1,,b=2", "rubbish", "a=1,a=2", "a=" + "x" * 9000])
def test_traceparent_is_read_as_the_official_propagator_reads_it(header: str, state: str | None) -> None:
    assert parse_traceparent(header, state) == officially(header, state)


@settings(max_examples=300, deadline=None)
@given(
    version=st.sampled_from(["00", "01", "ff", "0"]) | hexadecimal,
    trace_id=st.text("0123456789abcdefG", min_size=31, max_size=33),
    span_id=st.text("0123456789abcdef+", min_size=15, max_size=17),
    flags=st.text("0123456789abcdef ", min_size=1, max_size=3),
    rest=st.sampled_from(["", "-", "-x", " "]),
)
def test_any_traceparent_is_read_as_the_official_propagator_reads_it(
    version: str, trace_id: str, span_id: str, flags: str, rest: str
) -> None:
    header = f"{version}-{trace_id}-{span_id}-{flags}{rest}"
    assert parse_traceparent(header, None) == officially(header, None)


@settings(max_examples=300, deadline=None)
@given(
    members=st.lists(
        st.from_regex(r"[a-z0-9][_a-z0-9@*/-]{0,20}=[ -~]{0,20}", fullmatch=True) | st.text(max_size=10), max_size=40
    )
)
def test_any_tracestate_is_read_as_the_official_propagator_reads_it(members: list[str]) -> None:
    state = ",".join(members)
    assert parse_traceparent(PARENT, state) == officially(PARENT, state)


@pytest.mark.parametrize("state", ["rubbish", "A=1", "a=1," * 40, "x" * 9000])
def test_tracestate_that_is_not_valid_makes_no_log_line(state: str, caplog: pytest.LogCaptureFixture) -> None:
    assert parse_traceparent(PARENT, state) is not None
    assert caplog.records == []


def test_default_propagators_are_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_PROPAGATORS", raising=False)
    assert uses_default_propagators()
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext, baggage")
    assert uses_default_propagators()
    monkeypatch.setenv("OTEL_PROPAGATORS", "tracecontext")
    assert not uses_default_propagators()


def test_propagator_that_a_project_has_set_reads_the_headers() -> None:
    previous = propagate.get_global_textmap()
    propagate.set_global_textmap(CompositePropagator([]))
    try:
        provider, _ = make_provider()
        span = provider.tracer("t").start_request("root", {"HTTP_TRACEPARENT": PARENT}, {})
        assert span.get_span_context().trace_id != int(PARENT[3:35], 16)
    finally:
        propagate.set_global_textmap(previous)


def test_header_names_reach_propagators_in_their_own_spelling() -> None:
    seen: list[Any] = []

    class Propagator(TraceContextTextMapPropagator):
        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Context:
            seen.extend([getter.get(carrier, "x-b3-traceid"), sorted(getter.keys(carrier))])
            return context

    previous = propagate.get_global_textmap()
    propagate.set_global_textmap(Propagator())
    try:
        extract({"HTTP_X_B3_TRACEID": "7", "PATH_INFO": "/"}, Context())
    finally:
        propagate.set_global_textmap(previous)
    assert seen == [["7"], ["x-b3-traceid"]]


def test_another_runtime_context_is_used_through_the_api() -> None:
    code = (
        "from opentelemetry import context as c\n"
        "from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext as R\n"
        "class Other(c._RuntimeContext):\n"
        "    def __init__(self): self.inner = R()\n"
        "    def attach(self, context): return self.inner.attach(context)\n"
        "    def get_current(self): return self.inner.get_current()\n"
        "    def detach(self, token): self.inner.detach(token)\n"
        "c._RUNTIME_CONTEXT = Other()\n"
        "from django_obs.traces.provider import TracerProvider\n"
        "from django_obs.traces.span import current_ids\n"
        "with TracerProvider().tracer('t').start_as_current_span('s') as span:\n"
        "    assert current_ids() == span.ids()\n"
        "assert current_ids() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=60)
