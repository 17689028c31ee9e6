"""A callback once a module has been imported: nothing is imported for the sake of a library that nobody uses."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger("django_obs")

Callback = Callable[[], object]


class PostImportFinder:
    """Finds nothing itself: it has the other finders find a module that is waited for, and calls back when it has run.

    It costs every other import one look-up in a dict, and leaves ``sys.meta_path`` when nothing is waited for. What is
    asked of a finder it has; the abstract class of one would be six modules more to import.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callback]] = {}
        self.searching = threading.local()

    def add(self, name: str, callback: Callback) -> None:
        """Call back after the module has been imported; at once if it has been."""
        if is_imported(name):
            call(name, callback)
            return
        self.waiting.setdefault(name, []).append(callback)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find, with a loader that tells."""
        if fullname not in self.waiting or getattr(self.searching, "name", None) == fullname:
            return None
        self.searching.name = fullname
        try:
            spec = next(self._found(fullname, path, target), None)
        finally:
            self.searching.name = None
        if spec is not None and spec.loader is not None:
            self._listen(spec.loader, fullname)
        return spec

    def _found(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> Any:
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is not self and find_spec is not None:
                spec = find_spec(fullname, path, target)
                if spec is not None:
                    yield spec

    def _listen(self, loader: Any, fullname: str) -> None:
        # The loader itself stays: a proxy in its place would hide what importlib.resources and inspect ask it for.
        exec_module = loader.exec_module

        def exec_and_tell(module: ModuleType) -> None:
            exec_module(module)
            if module.__name__ == fullname:
                vars(loader).pop("exec_module", None)
                self.arrived(fullname)

        try:
            loader.exec_module = exec_and_tell
        except AttributeError:
            logger.warning("The import of %s cannot be followed: %r takes no attribute", fullname, loader)

    def arrived(self, name: str) -> None:
        """Call back those who waited for the module."""
        callbacks = self.waiting.pop(name, ())
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        for callback in callbacks:
            call(name, callback)


def is_imported(name: str) -> bool:
    """Tell whether a module has run to its end."""
    module = sys.modules.get(name)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def call(name: str, callback: Callback) -> None:
    """Run a callback; what it raises must not become the failure of somebody's import statement."""
    try:
        callback()
    except Exception:
        logger.warning("%s could not be instrumented", name, exc_info=True)


finder = PostImportFinder()


def when_imported(name: str, callback: Callback) -> None:
    """Call back once the module has been imported, at once if it has been. What the callback raises is logged."""
    finder.add(name, callback)
