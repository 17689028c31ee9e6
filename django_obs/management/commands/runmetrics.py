"""Serve the metrics of all processes on a port of their own."""

from __future__ import annotations

import errno
import shutil
import signal
import threading
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from django_obs.conf import get_settings

if TYPE_CHECKING:
    from django_obs.server.doors import Doors


class Command(BaseCommand):
    help = "Serves the metrics of all processes of this project to Prometheus, on a port of their own."
    # The port shall open although a check of the project fails: metrics are wanted most when something is wrong.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        metrics = get_settings().metrics
        parser.add_argument("--addr", default=metrics.addr, help="Address to listen on, default: %(default)s.")
        parser.add_argument(
            "--port", type=int, default=metrics.port, help="Port to listen on, 0 for a free one, default: %(default)s."
        )
        parser.add_argument(
            "--web-config",
            type=Path,
            metavar="FILE",
            help="A web-config file of Prometheus' exporter-toolkit: TLS, client certificates, users.",
        )
        parser.add_argument(
            "--reset",
            action="store_true",
            help="Start the store anew first. Processes that run go on with their series; all counts begin at zero.",
        )

    def handle(self, *args: Any, addr: str, port: int, web_config: Path | None, reset: bool, **options: Any) -> None:
        # Here and not above: `manage.py help` imports every command.
        from django_obs.server.assembly import build_application, store_directory
        from django_obs.server.doors import Doors
        from django_obs.server.listener import Listener
        from django_obs.server.web_config import Gatekeeper, WebConfigError

        if not get_settings().metrics.enabled:
            raise CommandError("There are no metrics to serve: DJANGO_OBS['METRICS']['ENABLED'] is False.")
        try:
            gatekeeper = Gatekeeper(web_config)
        except WebConfigError as error:
            raise CommandError(str(error)) from None
        application = build_application(gatekeeper)
        try:
            directory = store_directory()
            if reset:
                self.reset(directory)
            listener = Listener(application, addr, port, tls=gatekeeper, body_limit=application.body_limit)
        except OSError as error:
            raise CommandError(self.explain(error, addr, port)) from None
        # Before the word that it is up: who reads that may end it at once.
        restore = self.end_on_signals(listener)
        doors = Doors(application, listener, inner=web_config is not None)
        try:
            self.open(doors)
            scheme = "https" if gatekeeper.context() is not None else "http"
            host = f"[{listener.address}]" if ":" in listener.address else listener.address
            self.stdout.write(f"Metrics of {directory} on {scheme}://{host}:{listener.port}/metrics")
            self.stdout.flush()
            listener.serve()
        finally:
            doors.close()
            restore()

    def open(self, doors: Doors) -> None:
        """Let the processes of the project in."""
        from django.conf import settings as project

        try:
            doors.open(watch=project.DEBUG)
        except OSError as error:
            # The metrics are served all the same.
            self.stderr.write(f"The processes cannot be watched: {error}")

    def reset(self, directory: Path) -> None:
        """Remove the store. Raises OSError."""
        # Processes that have it open notice within a second and begin a new one.
        for path in directory.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def end_on_signals(self, listener: Any) -> Any:
        """End at once and in order at SIGTERM and SIGINT; return what takes that back."""
        if threading.current_thread() is not threading.main_thread():
            return lambda: None
        previous = {
            number: signal.signal(number, lambda *_: listener.stop()) for number in (signal.SIGTERM, signal.SIGINT)
        }

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        return restore

    def explain(self, error: OSError, addr: str, port: int) -> str:
        """Say what is wrong and what to do."""
        if error.errno == errno.EADDRINUSE:
            return (
                f"Port {port} of {addr or 'this machine'} is taken. `ss -ltnp 'sport = :{port}'` shows by whom; "
                "--port takes another one."
            )
        if error.errno == errno.EACCES and port and port < 1024:
            return f"Port {port} is only for root; --port takes another one."
        if error.errno == errno.EADDRNOTAVAIL:
            return f"This machine has no address {addr!r}; `ip -brief address` shows those that it has."
        return f"Cannot listen on {addr!r}, port {port}: {error.strerror or error}"
