"""Where the memory of a worker goes: what each library that django_obs imports adds to a site that serves already.

Run: ``python -m benchmarks.imports``. Prints megabytes of PSS, in the order in which a worker imports them; what one
library imports of another's counts for the first. Pages come by the megabyte, so single rows are rough; the sum is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.database import database
from benchmarks.latency import pss
from benchmarks.process import ROOT

STEPS = {
    "typing_extensions, for the API of OpenTelemetry": ("typing_extensions",),
    "OpenTelemetry's API": ("opentelemetry.trace", "opentelemetry.propagate", "opentelemetry.baggage.propagation"),
    "urllib.request, http.server and wsgiref, for prometheus_client": (
        "urllib.request",
        "http.server",
        "wsgiref.simple_server",
    ),
    "prometheus_client": ("prometheus_client",),
    "python-json-logger and orjson": ("pythonjsonlogger.orjson",),
    "settings, lifecycle and wiring": ("django_obs.conf", "django_obs.runtime", "django_obs.apps", "django_obs.watch"),
    "logs": ("django_obs.logs.pipeline",),
    "metrics": ("django_obs.metrics.pipeline", "django_obs.metrics.instruments", "django_obs.metrics.adoption"),
    "traces": ("django_obs.traces.pipeline", "django_obs.traces.requests", "django_obs.trace_signal"),
    "queries, cache, tasks and commands": (
        "django_obs.middleware",
        "django_obs.instrumentation.database",
        "django_obs.instrumentation.cache",
        "django_obs.instrumentation.commands",
        "django_obs.instrumentation.outgoing",
    ),
    "urllib3": ("urllib3",),
    "the exporters' HTTP client": ("opentelemetry.exporter.otlp.proto.http._common",),
    "for comparison: requests": ("requests",),
    "for comparison: SDK and protobuf, of the official exporter": (
        "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    ),
}


def measure() -> None:
    # What gunicorn's workers have.
    import gunicorn.arbiter
    import gunicorn.workers.sync  # noqa: F401

    from benchmarks.driver import WSGI

    site = WSGI()
    for page in ("trivial", "page", "api", "queries"):
        site.serve(f"/{page}/", 30)
    before = start = pss(os.getpid())
    for what, modules in STEPS.items():
        for module in modules:
            import_module(module)
        now = pss(os.getpid())
        print(f"{now - before:6.2f}  {what}", file=sys.stderr)
        before = now
        if what.startswith("the exporters"):
            print(f"{now - start:6.2f}  together", file=sys.stderr)


def main() -> None:
    with TemporaryDirectory(prefix="benchmark-") as name, database("sqlite", Path(name)) as url:
        variables = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "benchmarks.stacks.bare",
            "BENCH_DATABASE_URL": url,
            "PYTHONPYCACHEPREFIX": str(Path(name) / "bytecode"),
        }
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", "from benchmarks.imports import measure; measure()"]
        # The first run compiles what it imports, which takes memory of its own.
        subprocess.run(command, env=variables, cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
        subprocess.run(command, env=variables, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
