"""labels(): from label values to the child, for a label set that exists.

prometheus_client joins the values to a key under a lock. Here each parent gets a function made for its label names, so
that CPython itself binds positional and keyword arguments, and walks nested dictionaries: a string keeps its hash, a
tuple of strings does not (93 instead of 152 ns for three labels). Whatever is not found there, wrong arguments
included, goes to prometheus_client's method.
"""

from __future__ import annotations

import keyword
import threading
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from prometheus_client import metrics as pc

from . import values
from .index import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

_labels = pc.MetricWrapperBase.labels
_remove = pc.MetricWrapperBase.remove
_clear = pc.MetricWrapperBase.clear
_remove_by_labels: Any = getattr(pc.MetricWrapperBase, "remove_by_labels", None)

SOURCE = """\
def make(tree, parent, slow, missing):
    def labels({parameters}, *more, **unknown):
        if more or unknown:
            return slow(({arguments}, *more), unknown)
        try:
            return tree{path}
        except (KeyError, TypeError):
            child = parent._metrics.get(({texts},))
            if child is None:
                return slow(({arguments},), unknown)
            return child
    return labels
"""
OWN_NAMES = frozenset(
    ("tree", "parent", "slow", "missing", "more", "unknown", "labels", "child", "str", "KeyError", "TypeError")
)
MISSING: Any = object()


@cache
def _compile(names: tuple[str, ...]) -> CodeType:
    """Compile labels() for these names; those that cannot be parameters are found as keywords by `slow`."""
    usable = all(n.isidentifier() and not keyword.iskeyword(n) for n in names) and not OWN_NAMES.intersection(names)
    parameters = names if usable else tuple(f"_{i}" for i in range(len(names)))
    source = SOURCE.format(
        parameters=", ".join(f"{p}=missing" for p in parameters) + ("" if usable else ", /"),
        arguments=", ".join(parameters),
        texts=", ".join(f"str({p})" for p in parameters),
        path="".join(f"[{p}]" for p in parameters),
    )
    return compile(source, "<labels of prometheus_client metrics>", "exec")


def equip(parent: Any) -> None:
    """Give a parent its own labels()."""
    if hasattr(parent, "_tree"):
        return
    # Reentrant: a signal handler or a finalizer may come to labels() while the same thread is in it.
    parent._lock = threading.RLock()
    parent._tree = {}
    namespace: dict[str, Any] = {}
    exec(_compile(parent._labelnames), namespace)
    parent.labels = namespace["make"](parent._tree, parent, partial(_find, parent), MISSING)


def _find(parent: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Find or make a child; ValueError for wrong labels, as prometheus_client raises it."""
    names = parent._labelnames
    given = {name: value for name, value in zip(names, arguments, strict=False) if value is not MISSING}
    if keywords:
        if given or keywords.keys() != set(names):
            return _labels(parent, **{**given, **keywords})
        key = tuple(str(keywords[name]) for name in names)
    elif len(arguments) != len(names) or len(given) != len(names):
        return _labels(parent, *given.values(), *arguments[len(names) :])
    else:
        key = tuple(map(str, arguments))
    child = parent._metrics.get(key)
    if child is None:
        if (child := values.store.refuse(parent, key)) is not None:
            return child
        child = _labels(parent, *key)
        if hasattr(child, "_overflow"):
            return _share_overflow(parent, child)
    with parent._lock:
        if parent._metrics.get(key) is child:
            branch = parent._tree
            for value in key[:-1]:
                branch = branch.setdefault(value, {})
            branch[key[-1]] = child
    return child


def _share_overflow(parent: Any, child: Any) -> Any:
    """Let all refused label sets be one child, so that memory is bounded as well."""
    with parent._lock:
        parent._metrics.pop(child._labelvalues, None)
        child._labelvalues = (OVERFLOW,) * len(child._labelvalues)
        return parent._metrics.setdefault(child._labelvalues, child)


def remove(self: Any, *labelvalues: Any) -> None:
    """Remove a label set, in all processes."""
    _remove(self, *labelvalues)
    key = tuple(map(str, labelvalues))
    _forget(self, lambda labelvalues: labelvalues == key)


def remove_by_labels(self: Any, labels: dict[str, str]) -> None:
    """Remove the label sets that have these values, in all processes."""
    _remove_by_labels(self, labels)
    wanted = [(self._labelnames.index(name), str(value)) for name, value in labels.items()]
    if wanted:
        _forget(self, lambda labelvalues: all(labelvalues[i] == value for i, value in wanted))


def clear(self: Any) -> None:
    """Remove all label sets, in all processes."""
    _clear(self)
    if self._labelnames:
        _forget(self, lambda labelvalues: True)


def _forget(parent: Any, chosen: Callable[[tuple[str, ...]], bool]) -> None:
    with parent._lock:
        getattr(parent, "_tree", {}).clear()
    values.store.remove(parent, chosen)


def replacements() -> dict[str, Any]:
    """Name the methods of prometheus_client's base class that this module replaces."""
    methods: dict[str, Any] = {"remove": remove, "clear": clear}
    if _remove_by_labels is not None:  # prometheus_client 0.23 and later
        methods["remove_by_labels"] = remove_by_labels
    return methods
