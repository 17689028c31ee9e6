"""``manage.py obs dashboards``: write Grafana dashboards and Prometheus rules into a directory."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

HELP = "write Grafana dashboards and Prometheus rules into a directory"


def add_arguments(parser: ArgumentParser) -> None:
    """Declare where to, and what the traces are kept in."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the directory, made if it is not there")
    parser.add_argument(
        "--traces",
        choices=("tempo", "jaeger"),
        default="tempo",
        help="what the panels' links lead to, default: %(default)s",
    )
    parser.add_argument("--force", action="store_true", help="replace files that were changed, too")


def run(out: Any, *, directory: Path, traces: Any, force: bool, **options: Any) -> None:
    """Write the files, none of them if one was changed by somebody."""
    from django.conf import settings as project

    from django_obs import __version__
    from django_obs.conf import get_settings
    from django_obs.dashboards.files import ChangedFiles, contents, write

    namespace = getattr(project, "PROMETHEUS_METRIC_NAMESPACE", "")
    texts = contents(__version__, namespace=namespace, traces=traces, service=get_settings().service_name)
    try:
        became = write(directory, texts, force=force)
    except ChangedFiles as changed:
        raise CommandError(
            f"Nothing was written: somebody has changed {changed}. --force replaces what was changed; "
            "another directory keeps it."
        ) from None
    except OSError as error:
        raise CommandError(f"Cannot write to {error.filename or directory}: {error.strerror or error}") from None
    for name, state in became.items():
        out.write(f"{state + ':':<11}{directory / name}")
