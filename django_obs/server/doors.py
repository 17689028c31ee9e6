"""How the processes of the project come in to the admin port: where it is, what it watches, a door of their own."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from django_obs.lifecycle import Worker
from django_obs.server.access import is_loopback
from django_obs.server.address import Address, announce, withdraw
from django_obs.server.app import AdminApplication
from django_obs.server.listener import Listener
from django_obs.server.watch_control import RENEWAL

logger = logging.getLogger("django_obs")

# Bound to these, a socket is reached at the loopback address as well.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class Doors:
    """What opens beside a listener, and closes with it."""

    def __init__(self, application: AdminApplication, listener: Listener, *, inner: bool) -> None:
        """``inner``: whether the listener asks for more than a process of the project has: TLS, a certificate."""
        self.application = application
        self.listener = listener
        self.inner: Listener | None = None
        self._inner_wanted = inner
        self._thread: threading.Thread | None = None
        self._renewal: Worker | None = None
        self._address: Address | None = None

    def open(self, *, watch: bool) -> None:
        """Tell the processes and the commands where the port is; watch from now on if so. Raises OSError."""
        address = Address(self._url(), self.application.token)
        control = self.application.watch
        announce(address)
        self._address = address
        if control is None:
            return
        control.open(address)
        if watch:
            control.renew()
            self._renewal = Worker("django_obs-renewal")
            self._renewal.every(RENEWAL, self._renew)
            self._renewal.ensure()

    def close(self) -> None:
        """Take back what was told, and wake those who wait for news."""
        if self._renewal is not None:
            self._renewal.jobs.clear()
            self._renewal.stop(1.0)
        self.application.recent.close()
        if self._address is not None:
            withdraw(self._address)
        if self.application.watch is not None:
            with suppress(OSError):
                self.application.watch.close()
        if self.inner is not None:
            self.inner.stop()
        if self._thread is not None:
            self._thread.join(1.0)

    def _url(self) -> str:
        place = str(self.listener.address)
        if not self._inner_wanted:
            if place in EVERYWHERE:
                return f"http://{EVERYWHERE[place]}:{self.listener.port}"
            if is_loopback(place):
                return f"http://{f'[{place}]' if ':' in place else place}:{self.listener.port}"
        application = self.application
        self.inner = Listener(application.inner_door, "127.0.0.1", 0, body_limit=application.body_limit)
        self._thread = threading.Thread(target=self.inner.serve, name="django_obs-inner-door", daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self.inner.port}"

    def _renew(self) -> None:
        control = self.application.watch
        if control is not None:
            try:
                control.renew()
            except OSError as error:
                logger.warning("The processes cannot be watched: %s", error)
