"""Each rendered template as a span, includes nested in what includes them (``TRACES.TEMPLATES``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from .imports import when_imported


class TemplateInstrumentation:
    """Wraps the ``render()`` of Django's own engine and, where a project uses it, of the Jinja2 backend.

    ``tracer`` makes the spans; ``current_span`` returns the span that a rendering belongs to, or None: a template that
    is rendered outside of any makes no span.
    """

    def __init__(self, *, tracer: Any, current_span: Callable[[], Any]) -> None:
        self.tracer = tracer
        self.current_span = current_span

    def install(self) -> None:
        """Wrap the classes, now and once the Jinja2 backend is imported."""
        # The base class: {% include %} renders it directly, past the backend.
        from django.template.base import Template

        Template.render = self.traced(Template.render, "django", lambda template: template.name)  # type: ignore[method-assign]
        when_imported("django.template.backends.jinja2", self.wrap_jinja2)

    def wrap_jinja2(self) -> None:
        """Wrap the backend's class; Jinja2's own includes are part of one compiled rendering."""
        from django.template.backends.jinja2 import Template

        Template.render = self.traced(  # type: ignore[method-assign]
            Template.render, "jinja2", lambda template: template.template.name
        )

    def traced(self, render: Callable[..., Any], engine: str, name_of: Callable[[Any], str | None]) -> Any:
        """Return a ``render()`` with a span around it."""
        if hasattr(render, "_django_obs"):
            return render

        @wraps(render)
        def traced_render(template: Any, *args: Any, **kwargs: Any) -> Any:
            if self.current_span() is None:
                return render(template, *args, **kwargs)
            name = name_of(template) or "<string>"
            attributes = {"django.template.name": name, "django.template.engine": engine}
            with self.tracer.start_as_current_span(f"render {name}", attributes=attributes):
                return render(template, *args, **kwargs)

        traced_render._django_obs = True  # type: ignore[attr-defined]
        return traced_render
