from __future__ import annotations

import pytest
from django.template import Context, Engine
from django.template.base import Template

from django_obs.instrumentation.templates import TemplateInstrumentation
from django_obs.traces.span import recording_span
from tests.traces.support import attributes, make_provider


@pytest.fixture
def sink(monkeypatch):
    monkeypatch.setattr(Template, "render", Template.render)
    provider, sink = make_provider()
    sink.tracer = provider.tracer("test")
    TemplateInstrumentation(tracer=sink.tracer, current_span=recording_span).install()
    return sink


@pytest.fixture
def engine():
    loader = "django.template.loaders.locmem.Loader"
    return Engine(
        loaders=[(loader, {"page.html": "{% include 'row.html' %}", "row.html": "row", "bad.html": "{{ 1|add:x }}"})]
    )


def test_include_is_nested_in_page(sink, engine):
    with sink.tracer.start_as_current_span("request"):
        assert engine.get_template("page.html").render(Context()) == "row"
    row, page, root = sink.spans()
    assert [row.name, page.name] == ["render row.html", "render page.html"]
    assert (row.parent_span_id, page.parent_span_id) == (page.span_id, root.span_id)
    assert attributes(page) == {"django.template.name": "page.html", "django.template.engine": "django"}


def test_template_outside_of_any_span_makes_none(sink, engine):
    assert engine.get_template("page.html").render(Context()) == "row"
    assert sink.spans() == []


def test_template_without_name_is_a_string(sink, engine):
    with sink.tracer.start_as_current_span("request"):
        engine.from_string("x").render(Context())
    assert sink.names() == ["render <string>", "request"]


def test_installing_twice_makes_one_span(sink, engine):
    TemplateInstrumentation(tracer=sink.tracer, current_span=recording_span).install()
    with sink.tracer.start_as_current_span("request"):
        engine.from_string("x").render(Context())
    assert len(sink.spans()) == 2
