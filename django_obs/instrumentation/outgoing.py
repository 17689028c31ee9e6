"""Outgoing calls: the installed OpenTelemetry instrumentors, each switched on when its library is imported."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from .imports import when_imported

logger = logging.getLogger("django_obs")


class Instrumentor(NamedTuple):
    """An instrumentor of the OpenTelemetry contrib repository, and the module whose import calls for it."""

    library: str
    module: str
    attribute: str


def _contrib(library: str, package: str, attribute: str) -> Instrumentor:
    return Instrumentor(library, f"opentelemetry.instrumentation.{package}", attribute)


# A table, not a scan of entry points: the scan reads the metadata of every installed distribution at each start.
# https://github.com/open-telemetry/opentelemetry-python-contrib/tree/main/instrumentation
INSTRUMENTORS: dict[str, Instrumentor] = {
    "aio-pika": _contrib("aio_pika", "aio_pika", "AioPikaInstrumentor"),
    "aiohttp-client": _contrib("aiohttp", "aiohttp_client", "AioHttpClientInstrumentor"),
    "aiokafka": _contrib("aiokafka", "aiokafka", "AIOKafkaInstrumentor"),
    "asyncpg": _contrib("asyncpg", "asyncpg", "AsyncPGInstrumentor"),
    "boto3sqs": _contrib("boto3", "boto3sqs", "Boto3SQSInstrumentor"),
    "botocore": _contrib("botocore", "botocore", "BotocoreInstrumentor"),
    "cassandra": _contrib("cassandra", "cassandra", "CassandraInstrumentor"),
    "confluent-kafka": _contrib("confluent_kafka", "confluent_kafka", "ConfluentKafkaInstrumentor"),
    "elasticsearch": _contrib("elasticsearch", "elasticsearch", "ElasticsearchInstrumentor"),
    "grpc": _contrib("grpc", "grpc", "GrpcInstrumentorClient"),
    "grpc-aio": _contrib("grpc.aio", "grpc", "GrpcAioInstrumentorClient"),
    "httpx": _contrib("httpx", "httpx", "HTTPXClientInstrumentor"),
    "kafka-python": _contrib("kafka", "kafka", "KafkaInstrumentor"),
    "pika": _contrib("pika", "pika", "PikaInstrumentor"),
    "pymemcache": _contrib("pymemcache", "pymemcache", "PymemcacheInstrumentor"),
    "pymongo": _contrib("pymongo", "pymongo", "PymongoInstrumentor"),
    "redis": _contrib("redis", "redis", "RedisInstrumentor"),
    "remoulade": _contrib("remoulade", "remoulade", "RemouladeInstrumentor"),
    "requests": _contrib("requests", "requests", "RequestsInstrumentor"),
    "sqlalchemy": _contrib("sqlalchemy", "sqlalchemy", "SQLAlchemyInstrumentor"),
    "urllib": _contrib("urllib.request", "urllib", "URLLibInstrumentor"),
    "urllib3": _contrib("urllib3", "urllib3", "URLLib3Instrumentor"),
}

# Where the distribution is not called like the entry point.
DISTRIBUTIONS = {"grpc-aio": "grpc"}

# Measured by ourselves, once; a second instrumentor would make each span twice. The databases are seen through Django.
OURS = frozenset(
    {
        "aiopg",
        "asgi",
        "celery",
        "dbapi",
        "django",
        "logging",
        "mysql",
        "mysqlclient",
        "psycopg",
        "psycopg2",
        "pymysql",
        "sqlite3",
        "system-metrics",
        "wsgi",
    }
)


class OutgoingInstrumentation:
    """Switches on the instrumentors that ``TRACES.INSTRUMENT`` names, or with ``auto`` all in the table.

    ``tracer_provider`` is whom their spans go to; None for the global one.
    """

    def __init__(self, names: Literal["auto"] | Sequence[str], *, tracer_provider: Any = None) -> None:
        self.is_auto = names == "auto"
        self.names = [name for name in INSTRUMENTORS if self.is_auto or name in names]
        self.tracer_provider = tracer_provider

    def install(self) -> None:
        """Wait for the libraries. Imports nothing; one that is imported already is instrumented at once."""
        for name in self.names:
            when_imported(INSTRUMENTORS[name].library, partial(self.switch_on, name))

    def switch_on(self, name: str) -> None:
        """Import the instrumentor, if it is installed, and let it instrument its library."""
        _, module, attribute = INSTRUMENTORS[name]
        try:
            instrumentor = getattr(import_module(module), attribute)()
        except ModuleNotFoundError as missing:
            # Not installed: the checks say so where it was asked for by name. What it needs itself is missing: worse.
            if not module.startswith(missing.name or " "):
                self.report(name, missing)
            return
        except Exception as error:
            self.report(name, error)
            return
        if instrumentor.is_instrumented_by_opentelemetry:
            return  # By opentelemetry-instrument, or by the project itself.
        try:
            instrumentor.instrument(tracer_provider=self.tracer_provider, raise_exception_on_conflict=True)
        except Exception as error:
            self.report(name, error)

    def report(self, name: str, error: Exception) -> None:
        """Say why a library is not instrumented, unless nobody asked for it in particular."""
        level = logging.DEBUG if self.is_auto and type(error).__name__ == "DependencyConflictError" else logging.WARNING
        logger.log(level, "%s is not instrumented: %s: %s", name, type(error).__name__, error)


def unusable_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return each name in ``TRACES.INSTRUMENT`` that switches nothing on: name, reason, way out."""
    found = []
    for name in names:
        if name in OURS:
            if name != "celery":
                found.append((name, "which is measured through Django already", "Leave it out."))
        elif name not in INSTRUMENTORS:
            reason = "which is unknown, must be one of: " + ", ".join(INSTRUMENTORS)
            found.append((name, reason, "Correct the name or leave it out."))
        elif not _is_installed(INSTRUMENTORS[name].module):
            package = f"opentelemetry-instrumentation-{DISTRIBUTIONS.get(name, name)}"
            way_out = f"Install it (python -m pip install {package}) or leave it out."
            found.append((name, "but its instrumentor is not installed", way_out))
    return found


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
