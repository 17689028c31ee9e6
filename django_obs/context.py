"""The work that is going on: which request, task or command this code runs for, and what was bound to it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from django_obs.stack import stack_of


class Scope:
    """One request, task or command.

    A single mutable object is shared by all contexts that are copied while the work goes on (``sync_to_async``,
    ``asyncio`` children, threads started with a copied context), so that what one of them binds all of them log.
    """

    __slots__ = (
        "_stack",
        "activation",
        "bound",
        "cache_hits",
        "cache_misses",
        "client",
        "db_count",
        "db_ns",
        "ended",
        "entry",
        "error",
        "exception",
        "excluded",
        "ids",
        "kind",
        "method",
        "name",
        "path",
        "queue_ns",
        "request",
        "request_id",
        "route",
        "sampled",
        "scheme",
        "size",
        "span",
        "started",
        "status",
        "trace_id",
        "user_id",
    )

    def __init__(self, kind: str, *, started: int = 0) -> None:
        # Set here, not on the class: CPython 3.11 to 3.13 look a default of the class up in its bases at each use.
        self.kind = kind  # "request", "task" or "command"
        self.started = started  # nanoseconds of time.perf_counter_ns()
        self.ended = 0
        self.bound: dict[str, Any] = {}
        self.method = ""
        self.path = ""
        self.scheme = ""
        self.name = ""  # the view, the task or the command
        self.route: str | None = None
        self.status = 0
        self.request: Any = None
        self.request_id = ""
        self.trace_id = ""  # 32 lower-case hexadecimal digits
        self.ids: tuple[str, str] | None = None  # the trace id, and 16 digits of the local root's span id
        self.span: Any = None  # the local root
        self.sampled = False  # by the head: a root that failed or was slow is kept all the same
        self.entry: Any = None  # what the metrics counted it as when it came in
        self.activation: Any = None  # what makes the span the current one of the OpenTelemetry context
        self.user_id: str | None = None  # only if the work has loaded it anyway
        self.client: str | None = None  # the address that the server was connected from
        self.queue_ns: int | None = None  # waited in the server's queue, as told by the proxy
        self.size = -1  # bytes of the response's body
        self.db_count = 0
        self.db_ns = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.excluded = False
        self.exception: BaseException | None = None  # what the view raised, handled or not
        self.error: BaseException | None = None  # what nobody handled
        self._stack: str | None = None

    def told(self) -> Scope:
        """Return a copy with what a line tells of it, and nothing that is the project's, such as what was bound."""
        copy = Scope(self.kind, started=self.started)
        for name in TOLD:
            setattr(copy, name, getattr(self, name))
        return copy

    def stack(self) -> str:
        """Return the stack of what nobody handled. It is made once for all signals: that takes half a millisecond."""
        if self._stack is None:
            self._stack = stack_of(self.error, self.error.__traceback__) if self.error is not None else ""
        return self._stack


# What an access line tells of a request, all of it text and numbers.
TOLD = (
    "client",
    "ended",
    "ids",
    "method",
    "path",
    "queue_ns",
    "request_id",
    "route",
    "size",
    "status",
    "trace_id",
    "user_id",
)

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
