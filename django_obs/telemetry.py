"""What is switched on in this process: the doors to the signals at which the middleware knocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_obs.conf import Settings
    from django_obs.logs.access import AccessLog
    from django_obs.metrics.instruments import RequestInstruments
    from django_obs.traces.requests import RequestTracing


# Matching takes ten times as long as looking a path up.
REMEMBERED = 1024
REMEMBERED_LENGTH = 256


class Telemetry:
    """The doors that are open in this process; None where a signal is off."""

    def __init__(
        self,
        *,
        settings: Settings,
        open_tracing: Callable[[], RequestTracing] | None = None,
        open_instruments: Callable[[], RequestInstruments] | None = None,
        access: AccessLog | None = None,
    ) -> None:
        """``open_tracing`` and ``open_instruments`` are called when a server loads the middleware, before it forks its
        workers: a process that serves nothing does not import what they do.
        """
        self.settings = settings
        self.open_tracing = open_tracing
        self.open_instruments = open_instruments
        self.access = access


def compile_globs(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function that is true for paths that match any of the globs."""
    exact = frozenset(glob for glob in globs if not re.search(r"[*?\[]", glob))
    patterns = [translate(glob) for glob in globs if glob not in exact]
    if not patterns:
        return exact.__contains__
    match = re.compile("|".join(patterns)).match
    known: dict[str, bool] = {}

    def matches(path: str) -> bool:
        found = known.get(path)
        if found is None:
            found = path in exact or match(path) is not None
            # Clients choose their paths: what is full is emptied, and none of them takes much room.
            if len(known) >= REMEMBERED:
                known.clear()
            if len(path) <= REMEMBERED_LENGTH:
                known[path] = found
        return found

    return matches
