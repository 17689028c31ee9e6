"""The work that is going on: which request, task or command this code runs for, and what was bound to it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any


class Scope:
    """One request, task or command.

    A single mutable object is shared by all contexts that are copied while the work goes on (``sync_to_async``,
    ``asyncio`` children, threads started with a copied context), so that what one of them binds all of them log.
    """

    # Defaults stand on the class: a request sets only what it has.
    method = ""
    path = ""
    name = ""  # the view, the task or the command
    route: str | None = None
    status = 0
    request: Any = None
    request_id = ""
    trace_id = ""  # 32 lower-case hexadecimal digits
    span: Any = None  # the local root
    sampled = False  # by the head: a root that failed or was slow is kept all the same
    entry: Any = None  # what the metrics counted it as when it came in
    activation: Any = None  # what makes the span the current one of the OpenTelemetry context
    user_id: str | None = None  # only if the work has loaded it anyway
    started = 0  # nanoseconds of time.perf_counter_ns()
    ended = 0
    queue_ns: int | None = None  # waited in the server's queue, as told by the proxy
    size = -1  # bytes of the response's body
    db_count = 0
    db_ns = 0
    cache_hits = 0
    cache_misses = 0
    excluded = False
    exception: BaseException | None = None  # what the view raised, handled or not
    error: BaseException | None = None  # what nobody handled

    def __init__(self, kind: str, *, started: int = 0) -> None:
        self.kind = kind  # "request", "task" or "command"
        self.started = started
        self.bound: dict[str, Any] = {}


current: ContextVar[Scope | None] = ContextVar("django_obs.scope", default=None)
unscoped: ContextVar[dict[str, Any] | None] = ContextVar("django_obs.unscoped", default=None)


def bind(**fields: Any) -> None:
    """Add fields to every later log line of the current request, task or command.

    Outside of any, the fields hold for the current context (thread or asyncio task) and what it starts.
    """
    scope = current.get()
    if scope is not None:
        scope.bound.update(fields)
    else:
        unscoped.set({**(unscoped.get() or {}), **fields})


def unbind(*names: str) -> None:
    """Take fields back; names that are not bound are ignored."""
    scope = current.get()
    if scope is not None:
        for name in names:
            scope.bound.pop(name, None)
    else:
        fields = unscoped.get() or {}
        unscoped.set({name: value for name, value in fields.items() if name not in names})


def bound_fields() -> dict[str, Any] | None:
    """Return what is bound here, or None; not to be changed by the caller."""
    scope = current.get()
    return scope.bound if scope is not None else unscoped.get()
