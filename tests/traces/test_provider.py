from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanKind, Status, StatusCode

from django_obs import __version__
from django_obs.traces.encoder import SCHEMA_URL
from django_obs.traces.propagation import detach
from django_obs.traces.provider import TracerProvider

from .support import PIPELINE_QUERIES, QUERIES, make_provider


class Recorder(SpanProcessor):
    """Notes what it is told, and says something itself."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span.name)
        span.set_attribute("by", "processor")

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


def test_span_processor_sees_every_span_as_the_sdk_shows_it() -> None:
    provider, sink = make_provider()
    recorder = Recorder()
    provider.add_span_processor(recorder)
    tracer = provider.tracer("shop", "1.0", "https://schema")
    root = tracer.start_request("root", {}, {"k": ["v"]})
    token = root.activate()
    root.add_leaf("SELECT 1", 5, 6, "IntegrityError", source=QUERIES, attributes={"more": 1})
    with tracer.start_as_current_span("child", kind=SpanKind.CLIENT) as child:
        child.add_event("event", {"e": 1})
        child.add_link(root.get_span_context(), {"l": 2})
    detach(token)
    root.set_status(Status(StatusCode.ERROR, "why"))
    root.end()

    assert recorder.started == ["root", "SELECT", "child"]
    leaf, ended, last = recorder.ended
    assert all(isinstance(span, ReadableSpan) for span in recorder.ended)
    assert (leaf.name, ended.name, last.name) == ("SELECT", "child", "root")
    assert leaf.attributes == {
        "db.query.text": "SELECT 1",
        "db.system.name": "sqlite",
        "more": 1,
        "error.type": "IntegrityError",
        "by": "processor",
    }
    assert (leaf.kind, leaf.start_time, leaf.end_time) == (SpanKind.CLIENT, 5, 6)
    assert leaf.status.status_code is StatusCode.ERROR
    assert leaf.parent == ended.parent == last.context
    assert ended.kind is SpanKind.CLIENT
    assert [(event.name, dict(event.attributes or {})) for event in ended.events] == [("event", {"e": 1})]
    assert ended.links[0].attributes == {"l": 2}
    assert last.attributes == {"k": ("v",), "by": "processor"}
    assert (last.status.status_code, last.status.description) == (StatusCode.ERROR, "why")
    assert last.instrumentation_scope is not None
    assert last.instrumentation_scope.name == "shop"
    assert isinstance(last.resource, Resource)
    assert '"name": "root"' in last.to_json()
    # What the collector gets is the same, by id.
    assert {span.span_id for span in sink.spans()} == {
        span.context.span_id.to_bytes(8, "big") for span in recorder.ended if span.context is not None
    }


def test_processors_of_the_sdk_export_our_spans() -> None:
    provider, _ = make_provider()
    memory, out = InMemorySpanExporter(), io.StringIO()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=out)))
    provider.add_span_processor(BatchSpanProcessor(memory))
    provider.tracer("shop").start_request("root", {}, {"k": "v"}).end()
    assert provider.force_flush(10_000)
    assert [span.name for span in memory.get_finished_spans()] == ["root"]
    provider.shutdown()
    assert '"name": "root"' in out.getvalue()


def test_live_span_reads_like_one_of_the_sdk() -> None:
    provider, _ = make_provider()
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {"list": [1, 2], "deep": {"a": object}})
    child = tracer.start_span("child", api.set_span_in_context(root), SpanKind.PRODUCER, start_time=7)
    assert child.parent is root.get_span_context()  # type: ignore[attr-defined]
    assert child.start_time == 7  # type: ignore[attr-defined]
    assert child.end_time is None  # type: ignore[attr-defined]
    assert child.kind is SpanKind.PRODUCER  # type: ignore[attr-defined]
    assert root.attributes["list"] == (1, 2)
    with pytest.raises(TypeError):
        root.attributes["list"] = 3  # type: ignore[index]
    assert root.status.status_code is StatusCode.UNSET  # type: ignore[union-attr]
    assert root.events == root.links == ()  # type: ignore[union-attr]
    assert "root" in repr(root)


def test_same_scope_has_the_same_tracer() -> None:
    provider, _ = make_provider()
    assert provider.get_tracer("a", "1") is provider.get_tracer("a", "1")
    assert provider.get_tracer("a", "1") is not provider.get_tracer("a", "2")
    assert provider.get_tracer("a", attributes={"x": [1]}) is provider.get_tracer("a", attributes={"x": [1]})


def test_spans_of_several_scopes_are_kept_apart() -> None:
    provider, sink = make_provider()
    root = provider.tracer("django_obs", __version__, SCHEMA_URL).start_request("root", {}, {})
    token = root.activate()
    with provider.get_tracer("shop", "2.0").start_as_current_span("theirs"):
        pass
    root.add_leaf("SELECT 1", 1, 2, source=PIPELINE_QUERIES)
    detach(token)
    root.end()
    found = {each.scope.name: [span.name for span in each.spans] for each in sink.scope_spans()}
    assert found == {"shop": ["theirs"], "django_obs": ["SELECT", "root"]}


def test_disabled_sdk_makes_tracers_that_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert isinstance(TracerProvider(resource={}).get_tracer("t"), NoOpTracer)


def test_fork_without_hooks_makes_other_ids() -> None:
    from django_obs.traces import span

    provider = TracerProvider(service_name="shop")
    before = provider.resource_attributes["service.instance.id"]
    state = span.generator.getstate()
    expected = span.getrandbits(64)
    span.generator.setstate(state)
    provider.after_fork()
    assert span.getrandbits(64) != expected
    assert provider.resource_attributes["service.instance.id"] != before


def test_seed_of_the_random_module_does_not_repeat_ids() -> None:
    import random

    provider, sink = make_provider()
    for _ in range(2):
        random.seed(1)
        provider.tracer("t").start_request("root", {}, {}).end()
    assert len({span.trace_id for span in sink.spans()}) == 2


def run(code: str, **environ: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": os.getcwd()} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


SETUP = (
    "from opentelemetry import trace\n"
    "from django_obs.conf import TraceSettings\n"
    "from django_obs.traces.pipeline import TracePipeline\n"
    "pipeline = TracePipeline(TraceSettings(), service_name='shop')\n"
)


def test_pipeline_becomes_the_global_provider_once() -> None:
    run(
        "from opentelemetry import trace\n"
        "early = trace.get_tracer('early')\n"
        + SETUP
        + "assert pipeline.install() and pipeline.install()\n"
        + "assert trace.get_tracer_provider() is pipeline.provider\n"
        + "with early.start_as_current_span('s') as span:\n"
        + "    assert span.is_recording()\n"
        + "    assert pipeline.current_span() is span and pipeline.current_ids() == span.ids()\n"
    )


def test_pipeline_steps_back_where_another_provider_is_installed() -> None:
    run(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "theirs = TracerProvider()\n"
        "trace.set_tracer_provider(theirs)\n" + SETUP + "assert not pipeline.install()\n"
        "assert trace.get_tracer_provider() is theirs\n"
    )


def test_provider_that_the_environment_names_goes_first() -> None:
    run(SETUP + "assert not pipeline.install()\n", OTEL_PYTHON_TRACER_PROVIDER="sdk_tracer_provider")


class Raising:
    """A sampler and a span processor that fail at everything."""

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: Any, **keywords: Any) -> Any:
            raise ZeroDivisionError(name)

        return fail


def test_sampler_and_processors_that_raise_cost_no_span() -> None:
    provider, sink = make_provider()
    recorder = Recorder()
    provider.sampler = Raising()
    provider.add_span_processor(Raising())
    provider.add_span_processor(recorder)
    tracer = provider.tracer("shop")
    root = tracer.start_request("root", {}, {})
    tracer.start_span("child", api.set_span_in_context(root)).end()
    root.end()

    assert sink.names() == ["child", "root"]
    assert recorder.started == ["root", "child"]
    assert [span.name for span in recorder.ended] == ["child", "root"]
    assert not provider.force_flush()
    provider.shutdown()
