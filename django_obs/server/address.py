"""Where the admin port of this project is, as who runs it tells the commands: a file in the runtime directory."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from django_obs.runtime import runtime_dir, write_atomically

FILE = "port.json"


class Address(NamedTuple):
    """What it takes to be let in."""

    url: str
    """Scheme, host and port."""
    token: str
    """For the header ``Authorization: Bearer``; who can read the runtime directory is let in with it."""


def announce(address: Address) -> None:
    """Tell where the port is. Raises OSError."""
    write_atomically(_path(), json.dumps(address._asdict()).encode())


def withdraw(address: Address) -> None:
    """Tell no longer, unless somebody else has told since."""
    with contextlib.suppress(OSError):
        if announced() == address:
            os.unlink(_path())


def announced() -> Address | None:
    """Return where the port is, as it was told last: it may have gone since. Raises RuntimeDirError."""
    path = _path()
    with contextlib.suppress(OSError, ValueError):
        match json.loads(path.read_bytes()[:4096]):
            case {"url": str(url), "token": str(token)}:
                return Address(url, token)
    return None


def _path() -> Path:
    return runtime_dir() / FILE
