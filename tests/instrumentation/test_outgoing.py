from __future__ import annotations

import subprocess
import sys

import pytest

from django_obs.instrumentation.outgoing import INSTRUMENTORS, OURS, unusable_names


def run(code):
    """Run code in an interpreter of its own: an instrumentor changes its library for good."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_imports_nothing():
    code = """
import sys

import pytest
from django_obs.instrumentation.outgoing import OutgoingInstrumentation
before = set(sys.modules)
OutgoingInstrumentation("auto").install()
print([name for name in set(sys.modules) - before if not name.startswith("opentelemetry.instrumentation.urllib")])
"""
    assert run(code).strip() in ("[]", "['opentelemetry.instrumentation']", "['opentelemetry']")


def test_library_imported_later_is_instrumented_and_nests():
    code = """
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from opentelemetry import trace
from tests.traces.support import make_provider
from django_obs.instrumentation.outgoing import OutgoingInstrumentation

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        # First: whoever has the answer may be gone.
        print(self.headers["traceparent"], flush=True)
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass

server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
provider, sink = make_provider()
trace.set_tracer_provider(provider)
OutgoingInstrumentation("auto").install()
import requests
with provider.tracer("test").start_as_current_span("request") as root:
    requests.get(f"http://127.0.0.1:{server.server_port}/")
for span in sink.spans():
    print(span.name, span.parent_span_id.hex(), f"{root.span_id:016x}", span.kind)
"""
    header, call, _root = run(code).splitlines()
    name, parent, root, kind = call.split()
    assert (name, parent, kind) == ("GET", root, "3")
    assert header.startswith("00-")


def test_library_imported_before_is_instrumented():
    code = """
import requests
from django_obs.instrumentation.outgoing import OutgoingInstrumentation
OutgoingInstrumentation(("requests",)).install()
from opentelemetry.instrumentation.requests import RequestsInstrumentor
print(RequestsInstrumentor().is_instrumented_by_opentelemetry)
"""
    assert run(code).strip() == "True"


def test_unnamed_library_is_left_alone():
    code = """
from django_obs.instrumentation.outgoing import OutgoingInstrumentation
OutgoingInstrumentation(("redis",)).install()
import requests, sys
print("opentelemetry.instrumentation.requests" in sys.modules)
"""
    assert run(code).strip() == "False"


def test_failing_instrumentor_is_reported_and_swallowed():
    code = """
import logging
logging.basicConfig(format="%(message)s")
import opentelemetry.instrumentation.requests as module
def fail(self, **kwargs): raise RuntimeError("no such hook")
module.RequestsInstrumentor._instrument = fail
from django_obs.instrumentation.outgoing import OutgoingInstrumentation
OutgoingInstrumentation("auto").install()
import requests
print(requests.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "requests"
    assert done.stderr.strip() == "requests is not instrumented: RuntimeError: no such hook"


def test_table_has_nothing_that_is_measured_through_django():
    assert not OURS & set(INSTRUMENTORS)


def test_unusable_names_say_why_and_what_to_do():
    found = {name: rest for name, *rest in unusable_names(["requests", "psycopg", "kafka", "pika"])}
    assert set(found) == {"psycopg", "kafka", "pika"}
    assert found["psycopg"] == ["which is measured through Django already", "Leave it out."]
    assert found["kafka"][0].startswith("which is unknown, must be one of: aio-pika, ")
    assert "python -m pip install opentelemetry-instrumentation-pika" in found["pika"][1]


def test_celery_is_no_unusable_name():
    assert unusable_names(["celery"]) == []


def test_httpx_nests():
    pytest.importorskip("opentelemetry.instrumentation.httpx")
    code = """
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from opentelemetry import trace
from tests.traces.support import make_provider
from django_obs.instrumentation.outgoing import OutgoingInstrumentation

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *args): pass

server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
provider, sink = make_provider()
trace.set_tracer_provider(provider)
OutgoingInstrumentation("auto").install()
import httpx
with provider.tracer("test").start_as_current_span("request") as root:
    httpx.get(f"http://127.0.0.1:{server.server_port}/", trust_env=False)
for span in sink.spans():
    print(span.name, span.parent_span_id.hex() == f"{root.span_id:016x}", span.kind)
"""
    call, root = run(code).splitlines()
    assert call == "GET True 3"
    assert root == "request False 1"


def test_redis_nests_once():
    pytest.importorskip("opentelemetry.instrumentation.redis")
    redis = pytest.importorskip("redis")
    try:
        redis.Redis(socket_connect_timeout=20).ping()
    except redis.RedisError as error:
        pytest.skip(f"service redis: {error}")
    code = """
from opentelemetry import trace
from tests.traces.support import make_provider
from django_obs.instrumentation.outgoing import OutgoingInstrumentation
provider, sink = make_provider()
trace.set_tracer_provider(provider)
OutgoingInstrumentation("auto").install()
import redis
client = redis.Redis()
with provider.tracer("test").start_as_current_span("request") as root:
    client.get("django_obs-test")
for span in sink.spans():
    print(span.name, span.parent_span_id.hex() == f"{root.span_id:016x}", span.kind)
"""
    *calls, root = run(code).splitlines()
    assert calls.count("GET True 3") == 1
    assert root == "request False 1"
