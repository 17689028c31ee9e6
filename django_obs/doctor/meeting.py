"""Where the processes meet: the runtime directory, the lanes in it, who has one, and who counts elsewhere."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from django_obs.conf import get_settings, origin_of
from django_obs.metrics.lanes import LaneState
from django_obs.metrics.platform import unsupported
from django_obs.metrics.scraper import Page, Scraper
from django_obs.runtime import RuntimeDirError, probe_runtime_dir
from django_obs.server.assembly import STORE

from .finding import Finding, broken, off, ok, warning

# Below, a new process may find no room for its lane and its series.
ROOM = 16 * 2**20
PROC = Path("/proc")
# Counter, what it counts, where to look.
LOSSES = (
    ("django_obs_log_records_dropped", "log lines were dropped because the queue was full", "LOGS.QUEUE_SIZE"),
    ("django_obs_log_records_failed", "log lines could not be written", "the reader of the site's output"),
    ("django_obs_spans_dropped", "spans were dropped because the queue was full", "TRACES.QUEUE_SIZE"),
    ("django_obs_spans_failed", "spans were not taken by the collector", "the collector"),
)


def store() -> Path | None:
    """Return the directory of the metrics if there is one. Raises RuntimeDirError."""
    directory = probe_runtime_dir() / STORE
    return directory if (directory / "index").exists() else None


def examine() -> Iterator[Finding]:
    """Look at the directory and at the lanes; nothing is made."""
    try:
        place = probe_runtime_dir()
        there = store()
    except RuntimeDirError as error:
        # As it stands: it may be a command.
        yield broken("runtime.directory", f"{error.path} {error.reason}.", error.way_out)
        return
    if not place.exists():
        yield warning(
            "runtime.directory",
            f"{place} is not there: no process of this project has been at work, or they meet elsewhere.",
            "Start the site as this user and send it a request. If it runs, set DJANGO_OBS['RUNTIME_DIR'] for all of "
            "them: another TMPDIR, PrivateTmp= or a container of its own parts processes.",
        )
        yield from _scattered(place)
        return
    yield ok("runtime.directory", f"{place} belongs to this user alone.")
    yield from _room(place)
    if not get_settings().metrics.enabled:
        yield off("runtime.processes", f"{origin_of('metrics', 'enabled')} switches the metrics off.")
        return
    missing = unsupported()
    if missing is not None:
        yield broken("runtime.lanes", f"Metrics are not shared here: {missing}.", "Run CPython on Linux or macOS.")
        return
    if there is None:
        yield _nobody(place)
    else:
        page = Scraper(lambda: there).read()
        yield from _lanes(page)
        yield from _losses(page)
        yield _processes(place, [lane for lane in page.lanes if lane.alive and lane.pid != os.getpid()])
    yield from _scattered(place)


def _room(place: Path) -> Iterator[Finding]:
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    if free < ROOM:
        yield broken(
            "runtime.room",
            f"The file system of {place} has {free // 1024} KiB left.",
            "Make room; until then new series and new processes are not on the page of metrics.",
        )
    else:
        yield ok("runtime.room", f"{free // 2**20} MiB are free there.")


def _lanes(page: Page) -> Iterator[Finding]:
    unstored = [lane for lane in page.lanes if lane.alive and lane.unstored]
    if page.damaged:
        yield warning(
            "runtime.lanes",
            f"{page.damaged} lines of the index are damaged; their series are not shown.",
            "Stop the site and run manage.py runmetrics --reset.",
        )
    elif unstored:
        pids = ", ".join(str(lane.pid) for lane in unstored)
        yield warning(
            "runtime.lanes",
            f"Metrics of the processes {pids} have found no place in the store.",
            "Their log says why; a full disk, as a rule.",
        )
    else:
        yield ok("runtime.lanes", f"{len(page.lanes)} lanes, {page.series} series.")
    if page.dropped:
        yield warning(
            "runtime.series",
            f"{page.dropped} label sets were one too many for METRICS.MAX_SERIES.",
            "Find the label that takes too many values (a path, an id), or raise the setting.",
        )


def _losses(page: Page) -> Iterator[Finding]:
    for name, what, where in LOSSES:
        families = [family for family in page.families if family.name == name]
        lost = sum(page.values(family, row)[0] for family in families for row in page.rows(family))
        if lost:
            yield warning(
                f"runtime.{name.removeprefix('django_obs_')}",
                f"{lost:.0f} {what}, since the store was made.",
                f"Look at {where}; manage.py runmetrics --reset begins to count anew.",
            )


def _processes(place: Path, alive: list[LaneState]) -> Finding:
    roles = Counter(lane.role or "process" for lane in alive)
    if not roles:
        return _nobody(place)
    return ok("runtime.processes", "At work: " + ", ".join(f"{count} {role}" for role, count in sorted(roles.items())))


def _nobody(place: Path) -> Finding:
    return warning(
        "runtime.processes",
        f"No process that counts into {place} is at work.",
        "Start the site as this user and send it a request: a process is seen from its first one on. If it has had "
        "one, it meets elsewhere: set DJANGO_OBS['RUNTIME_DIR'] for all.",
    )


def _scattered(place: Path) -> Iterator[Finding]:
    elsewhere = dict(processes_elsewhere(place / STORE))
    if elsewhere:
        told = "; ".join(f"process {pid} in {directory}" for pid, directory in sorted(elsewhere.items())[:5])
        yield broken(
            "runtime.same_directory",
            f"Processes of this project meet elsewhere: {told}.",
            f"Give all of them the same DJANGO_OBS['RUNTIME_DIR'] (this command found {place}).",
        )


def processes_elsewhere(directory: Path) -> Iterator[tuple[int, Path]]:
    """Yield processes of this project whose lane lies in another directory, as far as ``/proc`` tells us."""
    ours = os.path.realpath(directory)
    for pid in _of_this_project():
        try:
            maps = (PROC / str(pid) / "maps").read_text(errors="replace")
        except OSError:
            continue
        for line in maps.splitlines():
            head, _, name = line.rpartition("/")
            place = head[head.find("/") :]
            if name.startswith("lane-") and place.endswith(f"/{STORE}") and os.path.realpath(place) != ours:
                yield pid, Path(place).parent
                break


def _of_this_project() -> Iterator[int]:
    from django.conf import settings

    base = getattr(settings, "BASE_DIR", None)
    homes = {os.getcwd(), *([os.path.realpath(base)] if base else [])}
    module = os.environ.get("DJANGO_SETTINGS_MODULE", "")
    for pid in processes():
        try:
            if (PROC / str(pid)).stat().st_uid == os.geteuid() and os.readlink(PROC / str(pid) / "cwd") in homes:
                environ = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
            else:
                continue
        except OSError:
            continue
        # What manage.py sets itself is not in there.
        named = [each for each in environ if each.startswith(b"DJANGO_SETTINGS_MODULE=")]
        if not named or named == [b"DJANGO_SETTINGS_MODULE=" + module.encode()]:
            yield pid


def processes() -> Iterator[int]:
    """Yield the pids of all other processes; none where there is no ``/proc``."""
    try:
        names = os.listdir(PROC)
    except OSError:
        return
    for name in names:
        if name.isdecimal() and int(name) != os.getpid():
            yield int(name)
