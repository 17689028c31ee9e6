"""The files that are written, each with a seal by which a later version knows whether somebody has changed it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2s
from importlib.resources import files
from pathlib import Path

from .boards import BOARDS
from .panels import TraceStore, dashboard

RULES = "rules.yml"
_SEAL = re.compile(r"(written by django_obs [^ ]+, seal )([0-9a-f]{16})")
_OPEN_SEAL = "0" * 16
# What PROMETHEUS_METRIC_NAMESPACE prefixes, as in django-prometheus.
_NAMESPACED = re.compile(r"(?<![a-z_])(?=django_(?:http|db|cache|model|migrations)_)")


class ChangedFiles(Exception):
    """Files that are in the way, because somebody else wrote or changed them."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(", ".join(map(str, paths)))
        self.paths = paths


def contents(
    version: str, *, namespace: str = "", traces: TraceStore = "tempo", service: str = "django"
) -> dict[str, str]:
    """Return the text of each file, by its name."""
    mark = f"written by django_obs {version}, seal {_OPEN_SEAL}"
    rules = files(__package__).joinpath(RULES).read_text("utf-8")
    texts = {RULES: f"# {mark}\n{rules}"}
    for board in BOARDS:
        made = {"__django_obs": mark, **dashboard(board, traces=traces, service=service)}
        texts[f"{board.uid}.json"] = json.dumps(made, indent=2) + "\n"
    if namespace:
        texts = {name: _NAMESPACED.sub(f"{namespace}_", text) for name, text in texts.items()}
    return {name: _sealed(text) for name, text in texts.items()}


def _sealed(text: str) -> str:
    return _SEAL.sub(lambda found: found[1] + _digest(text), text, count=1)


def _digest(text: str) -> str:
    return blake2s(_SEAL.sub(rf"\g<1>{_OPEN_SEAL}", text, count=1).encode(), digest_size=8).hexdigest()


def is_untouched(text: str) -> bool:
    """Tell whether this is as some version of ours has written it."""
    seal = _SEAL.search(text)
    return seal is not None and seal[2] == _digest(text)


def write(directory: Path, texts: Mapping[str, str], *, force: bool = False) -> dict[str, str]:
    """Write the files and return what became of each: ``new``, ``updated`` or ``unchanged``.

    All or, where one is in the way, none: raises ChangedFiles, unless forced. Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = {name: _read(directory / name) for name in texts}
    in_the_way = [
        directory / name
        for name, text in found.items()
        if text is not None and text != texts[name] and not is_untouched(text)
    ]
    if in_the_way and not force:
        raise ChangedFiles(in_the_way)
    became = {}
    for name, text in texts.items():
        if found[name] == text:
            became[name] = "unchanged"
        else:
            became[name] = "new" if found[name] is None else "updated"
            (directory / name).write_text(text, encoding="utf-8")
    return became


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None
