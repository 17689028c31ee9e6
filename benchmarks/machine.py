"""What was measured, on what, with which versions: figures without these say little."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "django",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-django",
    "opentelemetry-exporter-otlp",
    "prometheus-client",
    "django-prometheus",
    "python-json-logger",
    "orjson",
    "gunicorn",
    "psycopg",
    "rotel",
)


def machine() -> dict[str, object]:
    """Describe this machine, its versions, and the commit."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "system": platform.system() + " " + platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
