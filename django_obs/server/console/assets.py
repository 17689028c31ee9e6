"""The files that the pages need: a stylesheet, a script, the chart library."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

DIRECTORY = Path(__file__).parent / "static"
PREFIX = "/static/"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file of the console."""

    body: bytes
    content_type: str
    version: str


@cache
def assets() -> dict[str, Asset]:
    """Read all files, by their path below the directory: what is not listed here is not served."""
    found = {}
    for path in sorted(DIRECTORY.rglob("*")):
        if path.suffix in TYPES:
            body = path.read_bytes()
            version = hashlib.sha256(body).hexdigest()[:12]
            found[path.relative_to(DIRECTORY).as_posix()] = Asset(body, TYPES[path.suffix], version)
    return found


def url(name: str) -> str:
    """Return the address of a file, which changes with its content: a browser may keep it for good."""
    return f"{PREFIX}{name}?v={assets()[name].version}"
