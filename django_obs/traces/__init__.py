"""Request, query, any OpenTelemetry user -> Span -> held by its root -> encoder -> [bounded queue] -> exporter."""

from __future__ import annotations

# Before any module of ours: the end of this import builds the pipeline (see `TraceSignal`), which needs them
# whole, not in the middle of an import of their own.
import opentelemetry.trace  # noqa: F401
