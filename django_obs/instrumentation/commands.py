"""Each management command as one span, one scope and one sample of job metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from time import perf_counter_ns
from typing import Any

from django_obs.context import Scope, current
from django_obs.semconv import SERVING_COMMANDS

from .imports import when_imported

logger = logging.getLogger("django_obs")

# Commands of other apps that serve, work a queue or talk to a person until they are stopped: what they do is measured,
# they are not. A command may say so itself: ``django_obs_job = False`` (or True) on its class.
ENDLESS = SERVING_COMMANDS | {"obs", "shell_plus"}
# Django's own commands are the tools of whoever stands in front of the machine: no collector needs to hear of a
# ``check`` or a ``makemigrations``, and they shall end as fast as without us. One of them is a cron job.
DJANGO_JOBS = frozenset({"clearsessions"})
DJANGO_ENDLESS = frozenset({"dbshell", "runserver", "shell", "test", "testserver"})


def command_name(command: Any) -> str:
    """Return the name by which ``manage.py`` knows a command: its module's."""
    return type(command).__module__.rpartition(".")[2]


def is_job(command: Any) -> bool:
    """Tell whether a command is a piece of work that somebody may want to hear of."""
    said = getattr(command, "django_obs_job", None)
    if said is not None:
        return bool(said)
    name = command_name(command)
    if type(command).__module__.startswith("django."):
        return name in DJANGO_JOBS
    return name not in ENDLESS


def is_tool(command: Any) -> bool:
    """Tell whether a command is one of Django's own that do something and end."""
    return type(command).__module__.startswith("django.") and command_name(command) not in DJANGO_ENDLESS


def is_light(command: Any) -> bool:
    """Tell whether a command is Django's or ours: those import the tracing when a request or a person asks for it."""
    return type(command).__module__.startswith(("django.", "django_obs."))


class CommandInstrumentation:
    """A wrapper around ``BaseCommand.execute()``, which both ``manage.py`` and ``call_command()`` go through.

    ``tracer`` returns what makes the spans, ``instruments`` what keeps the metrics; each may be None, where its signal
    is off. ``set_role`` is told ``"command"`` when a process turns out to be one.
    """

    def __init__(
        self,
        *,
        tracer: Callable[[], Any] | None,
        instruments: Callable[[], Any] | None,
        set_role: Callable[[str], None] = lambda role: None,
    ) -> None:
        self.tracer = tracer
        self.instruments = instruments
        self.set_role = set_role

    def install(self) -> None:
        """Wrap the method, once it is there: most servers never import commands."""
        when_imported("django.core.management.base", self.wrap)

    def wrap(self) -> None:
        """Wrap the method. Costs a command that is no job one look at its name."""
        from django.core.management.base import BaseCommand

        execute = BaseCommand.execute
        if hasattr(execute, "_django_obs"):
            return
        run, unseen = self.run, self.run_unseen

        @wraps(execute)
        def measured_execute(command: BaseCommand, *args: Any, **options: Any) -> Any:
            if is_job(command):
                return run(command, execute, args, options)
            if is_tool(command) and current.get() is None:
                return unseen(command, execute, args, options)
            if not is_light(command):
                # A worker of somebody else's queue: its children shall find the tracing imported.
                self.open_tracer()
            return execute(command, *args, **options)

        measured_execute._django_obs = True  # type: ignore[attr-defined]
        BaseCommand.execute = measured_execute  # type: ignore[method-assign, assignment]

    def run(self, command: Any, execute: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Execute the command; a request, task or command that calls it stays the scope of what it does."""
        name = command_name(command)
        outer = current.get()
        started = perf_counter_ns()
        token = None
        if outer is None:
            self.set_role("command")
            scope = Scope("command", started=started)
            scope.name = name
            token = current.set(scope)
        error: BaseException | None = None
        try:
            tracer = self.open_tracer()
            if tracer is None:
                return execute(command, *args, **options)
            with tracer.start_as_current_span(name, attributes={"django.command.name": name}) as span:
                if token is not None:
                    scope.span = span
                    scope.trace_id = scope.request_id = f"{span.get_span_context().trace_id:032x}"
                return self.watched(span, execute, command, args, options)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if token is not None:
                current.reset(token)
            self.record(name, perf_counter_ns() - started, error)

    def open_tracer(self) -> Any | None:
        """Return what makes the spans; None where they are off, or where it cannot be made: the command goes on."""
        try:
            return self.tracer() if self.tracer is not None else None
        except Exception:
            logger.warning("No span is made of the command: the tracing cannot be built", exc_info=True)
            return None

    def run_unseen(
        self, command: Any, execute: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Execute a command whose queries are nobody's business: the first one counted would leave a file."""
        scope = Scope("command")
        scope.name = command_name(command)
        scope.excluded = True
        token = current.set(scope)
        try:
            return execute(command, *args, **options)
        finally:
            current.reset(token)

    def watched(
        self, span: Any, execute: Callable[..., Any], command: Any, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Execute the command; an exit with a status is no exception to a tracer, but a failure of a command."""
        try:
            return execute(command, *args, **options)
        except (SystemExit, KeyboardInterrupt) as ending:
            if not succeeded(ending):
                from opentelemetry.trace import Status, StatusCode

                span.set_attribute("error.type", type(ending).__name__)
                span.set_status(Status(StatusCode.ERROR, str(ending)))
            raise

    def record(self, name: str, duration_ns: int, error: BaseException | None) -> None:
        """Count the command in the job metrics. Never raises."""
        if self.instruments is None:
            return
        try:
            self.instruments().command_finished(name, duration_ns * 1e-9, None if succeeded(error) else error)
        except Exception:
            logger.warning("The metrics of the command %s could not be recorded", name, exc_info=True)


def succeeded(error: BaseException | None) -> bool:
    """Tell whether a command that ended so did its work: ``sys.exit(0)`` is a way to end well."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
