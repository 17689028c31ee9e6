"""logger -> EnvFilter -> NonBlockingHandler -> [Backlog] -> LogListener -> JSONFormatter -> Sink (and OTLP)."""

from __future__ import annotations
