"""What a request costs with and without telemetry: run ``python -m benchmarks --help``, or read README.md."""

from __future__ import annotations
