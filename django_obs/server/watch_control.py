"""Who watches the processes, and until when: the admin port orders the copies, through the control file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from django_obs.runtime import ControlFile
from django_obs.server.address import Address

# Who wants more wants a collector.
LONGEST: Final = 24 * 3600
# Seconds that the port asks for at a time where it watches by itself, and between two such times.
AUTOMATIC, RENEWAL = 30.0, 10.0
AUTOMATIC_HOLDER: Final = "DEBUG"
OPERATOR, EARLIER = "operator", "earlier"
MAX_HOLDERS: Final = 64


class WatchControl:
    """The watch order in the project's control file. It lasts as long as the last of those who asked for it."""

    def __init__(self, control: Callable[[], ControlFile]) -> None:
        self._control = control
        self._address: Address | None = None
        self._until: dict[str, float] = {}
        self._automatic = True
        self._lock = threading.Lock()

    def open(self, address: Address) -> None:
        """Let copies be sent to this address; those that go to a port that was here before come here from now on.

        Raises OSError.
        """
        with self._lock:
            self._address = address
            control = self._control()
            control.poll()
            if control.watch is not None:
                self._until[EARLIER] = control.watch.until
                self._order()

    def close(self) -> None:
        """Take back what is ours alone. What an operator has asked for waits for the next port. Raises OSError."""
        with self._lock:
            control = self._control()
            control.poll()
            order = control.watch
            if self._address is not None and order is not None and order.token == self._address.token:
                self._until = {who: until for who, until in self._until.items() if who in (OPERATOR, EARLIER)}
                self._order()
            self._address = None

    def renew(self) -> None:
        """Watch by itself, as is done under DEBUG, unless an operator has switched it off. Raises OSError."""
        if self._automatic:
            self.hold(AUTOMATIC, AUTOMATIC_HOLDER)

    def hold(self, seconds: float, holder: str = OPERATOR) -> Mapping[str, object]:
        """Watch for so many seconds from now; ``holder`` tells apart who asks. Raises ValueError and OSError."""
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"seconds must be more than 0 and at most {LONGEST}")
        if not holder.isprintable() or not 0 < len(holder) <= 64:
            raise ValueError("the holder must be 1 to 64 printable characters")
        with self._lock:
            if self._address is None:
                raise ValueError("copies can be sent to manage.py runmetrics alone, not to this server")
            self._forget_the_past()
            if len(self._until) >= MAX_HOLDERS and holder not in self._until:
                raise ValueError(f"{MAX_HOLDERS} watch already")
            self._until[holder] = time.time() + seconds
            if holder == OPERATOR:
                self._automatic = True
            self._order()
        return self.read()

    def release(self, holder: str | None = None) -> Mapping[str, object]:
        """Watch no longer for this holder; without one for nobody, not even under DEBUG. Raises OSError."""
        with self._lock:
            if holder is None:
                self._until.clear()
                self._automatic = False
            else:
                self._until.pop(holder, None)
            self._order()
        return self.read()

    def read(self) -> Mapping[str, object]:
        """Return whether the processes are watched, for how many seconds still, and who asked for it."""
        control = self._control()
        control.poll()
        order = control.watch
        with self._lock:
            self._forget_the_past()
            holders = sorted(self._until)
        left = None if order is None else round(max(0.0, order.until - time.time()), 1)
        return {"watched": order is not None, "seconds": left, "holders": holders}

    def _forget_the_past(self) -> None:
        now = time.time()
        self._until = {holder: until for holder, until in self._until.items() if until > now}

    def _order(self) -> None:
        self._forget_the_past()
        if not self._until or self._address is None:
            self._control().update(watch=None)
            return
        url, token = self._address
        self._control().update(watch={"url": url, "token": token, "until": max(self._until.values())})
