"""Request, query, any OpenTelemetry user -> Span -> held by its root -> encoder -> [bounded queue] -> exporter."""

from __future__ import annotations
