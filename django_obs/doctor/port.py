"""The admin port: whether it answers, and whether a sample that is recorded here is seen there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from django_obs.conf import get_settings, origin_of
from django_obs.metrics.pipeline import MetricPipeline
from django_obs.runtime import RuntimeDirError, probe_runtime_dir
from django_obs.server.address import Address, announced

from . import meeting
from .finding import Finding, broken, off, ok, warning

# Says that a page is one of ours: runmetrics has this in any case.
OURS = "django_obs_scrapes_total"
PROBE = "django_obs_doctor_probe"


def examine(metrics: MetricPipeline | None, timeout: float) -> Iterator[Finding]:
    """Ask the port, then record a sample and ask again."""
    if metrics is None:
        yield off("port.answers", f"{origin_of('metrics', 'enabled')} switches the metrics off.")
        return
    try:
        address = announced() if probe_runtime_dir().exists() else None
    except RuntimeDirError:
        return  # said already
    if address is None:
        yield _not_announced(timeout)
        return
    try:
        page = ask(address, timeout)
    except (OSError, ValueError) as error:
        yield broken(
            "port.answers",
            f"runmetrics was at {address.url} and does not answer: {_reason(error)}.",
            "Start it again: manage.py runmetrics.",
        )
        return
    if OURS not in page:
        yield broken("port.answers", f"At {address.url} is something else.", "Start manage.py runmetrics again.")
        return
    yield ok("port.answers", f"runmetrics answers at {address.url}.")
    if meeting.store() is None:
        yield warning(
            "port.sample",
            "No test sample was recorded: no process of this project has counted anything yet.",
            "Send the site a request and ask again.",
        )
        return
    yield _sample(metrics, address, timeout)


def _not_announced(timeout: float) -> Finding:
    settings = get_settings().metrics
    host = f"[{settings.addr}]" if ":" in settings.addr else settings.addr
    url = f"http://{host if settings.addr not in ('0.0.0.0', '') else '127.0.0.1'}:{settings.port}"
    try:
        page = ask(Address(url, ""), timeout)
    except HTTPError as error:
        page = ""
        if error.code != 401:
            return _not_running(f"At {url} is something else (status {error.code})")
    except (OSError, ValueError):
        return _not_running(f"Nobody serves the metrics, neither at {url} nor where this directory says")
    if page and OURS not in page:
        return _not_running(f"At {url} is something else")
    return broken(
        "port.same_directory",
        f"The runmetrics at {url} has another runtime directory than this command, or belongs to another project.",
        "Run both as the same user with the same settings, or set DJANGO_OBS['RUNTIME_DIR'] for all; another project "
        "needs another METRICS.PORT.",
    )


def _not_running(what: str) -> Finding:
    return broken(
        "port.answers",
        f"{what}.",
        "Run manage.py runmetrics beside the site, as the same user; or set DJANGO_OBS['METRICS']['ENABLED'] to False.",
    )


def _sample(metrics: MetricPipeline, address: Address, timeout: float) -> Finding:
    value = round(time.time(), 3)
    with recorded(metrics, value) as problem:
        if problem:
            return broken("port.sample", f"A test sample could not be stored: {problem}.", "Its reason is the way out.")
        seen = _value(ask(address, timeout))
    if seen == value:
        return ok("port.sample", "A test sample of this process was on the page.")
    return broken(
        "port.sample",
        f"A test sample of this process is not on the page of {address.url}.",
        "runmetrics reads another directory: restart it with the same user, settings and environment.",
    )


@contextmanager
def recorded(metrics: MetricPipeline, value: float) -> Iterator[str]:
    """Record a sample in a lane of this process; take both back at the end. Yield what went wrong, or nothing."""
    from prometheus_client import REGISTRY, Gauge

    store: Any = metrics.store
    store.set_role("doctor")
    gauge = Gauge(PROBE, "A test by manage.py obs doctor.", ["by"], multiprocess_mode="livemostrecent")
    try:
        gauge.labels("doctor").set(value)
        yield "" if store.open() else store._complaint or "nobody said why"
    finally:
        # The label set is always the same, so that a thousand visits of the doctor need the room of one.
        gauge.remove("doctor")
        REGISTRY.unregister(gauge)
        metrics.stand_aside()


def _value(page: str) -> float | None:
    for line in page.splitlines():
        if line.startswith(PROBE + "{"):
            return float(line.rpartition("} ")[2].split()[0])
    return None


def ask(address: Address, timeout: float) -> str:
    """Return the page of metrics. Raises OSError and ValueError."""
    headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
    opener = build_opener(ProxyHandler({}))  # a proxy has no business on the way to this machine
    with opener.open(Request(f"{address.url}/metrics", headers=headers), timeout=timeout) as response:
        return str(response.read().decode("utf-8", "replace"))


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, URLError) else error)
