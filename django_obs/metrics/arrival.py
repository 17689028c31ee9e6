"""The moment at which a module is imported, by whomever."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class Arrival:
    """Calls back before and after the first import of a module, put in front of ``sys.meta_path``; then it is gone."""

    def __init__(
        self, name: str, *, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None
    ) -> None:
        self.name = name
        self.before = before
        self.after = after

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as without us, and have its loader tell."""
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if self.before is not None:
                self.before()
            execute(module)
            if self.after is not None:
                self.after()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
