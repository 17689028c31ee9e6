"""The parts of the admin port, put together for this project."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from django.conf import settings as project

from django_obs import runtime
from django_obs.conf import Settings, get_settings
from django_obs.metrics.collectors import Collectors
from django_obs.metrics.migrations import MigrationCollector
from django_obs.metrics.scraper import Scraper
from django_obs.server.app import AdminApplication
from django_obs.server.console.history import History
from django_obs.server.console.processes import ProcessTable
from django_obs.server.console.site import Console
from django_obs.server.filter_control import LogFilter
from django_obs.server.page import MetricsPage
from django_obs.server.recent import Recent
from django_obs.server.watch_control import WatchControl
from django_obs.server.web_config import Gatekeeper

# Below the runtime directory.
STORE = "metrics"
# Seconds after which a request is slow where the settings have no word on it.
SLOW = 1.0


def store_directory() -> Path:
    """Return the directory of the metric store. Raises RuntimeDirError."""
    return runtime.runtime_dir() / STORE


def build_page(settings: Settings) -> MetricsPage:
    """Make the page of metrics; reads nothing yet."""
    from prometheus_client import REGISTRY

    namespace = getattr(project, "PROMETHEUS_METRIC_NAMESPACE", "")
    return MetricsPage(Scraper(store_directory), Collectors(REGISTRY, [MigrationCollector(namespace=namespace)]))


def build_application(gatekeeper: Gatekeeper | None = None) -> AdminApplication:
    """Make the application of this project, with the TLS and the users of a web-config file if there is one."""
    from django.apps import apps

    settings = get_settings()
    stand_aside(apps.get_app_config("django_obs"))
    control = LogFilter(runtime.control_file, settings.logs.filter) if settings.logs.enabled else None
    page = build_page(settings)
    # What is kept for being slow is slow to look at, too.
    recent = Recent(slower_than=settings.traces.keep_slower_than or SLOW)
    watch = WatchControl(runtime.control_file)
    return AdminApplication(
        page,
        gatekeeper or Gatekeeper(None),
        control,
        recent=recent,
        watch=watch,
        console=build_console(page, recent, control, watch, service=settings.service_name),
    )


def build_console(
    page: MetricsPage, recent: Recent, control: LogFilter | None, watch: WatchControl | None, *, service: str
) -> Console:
    """Make the console; its curves begin here."""
    history = History(page.scraper.read)
    page.readers.append(history.take)
    with suppress(OSError):
        history.look()
    return Console(history, ProcessTable(page.reader), recent, control=control, watch=watch, service=service)


def stand_aside(config: object) -> None:
    """Keep this process out of the store: what it records itself is of no interest, least of all its zeros."""
    metrics = getattr(config, "metrics", None)
    if metrics is not None:
        metrics.stand_aside()
