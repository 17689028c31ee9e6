"""The log filter of all processes, as the admin port reads and writes it: through the control file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from django_obs.runtime import ControlFile

SOURCE = "runmetrics"


class LogFilter:
    """The filter order in the project's control file."""

    def __init__(self, control: Callable[[], ControlFile], configured: str) -> None:
        """``configured``: the directives of the settings, which hold where nothing was ordered."""
        self._control = control
        self._configured = configured

    def read(self) -> Mapping[str, object]:
        """Return the directives that hold, their source and, if they expire, the seconds that are left."""
        control = self._control()
        control.poll()
        order = control.filter
        if order is None:
            return {"filter": self._configured, "source": "settings", "seconds": None}
        left = None if order.until is None else round(max(0.0, order.until - time.time()), 1)
        return {"filter": order.text, "source": order.source, "seconds": left}

    def write(self, directives: str, seconds: float | None) -> Mapping[str, object]:
        """Order the directives for so many seconds, or until further notice. Raises ValueError and OSError."""
        # Only where somebody writes: the parser belongs to the logs, which may be switched off.
        from django_obs.logs.directives import parse

        parse(directives)
        self._control().set_filter(directives, seconds=seconds, source=SOURCE)
        return self.read()

    def clear(self) -> Mapping[str, object]:
        """Take the order back."""
        self._control().set_filter(None, source=SOURCE)
        return self.read()
