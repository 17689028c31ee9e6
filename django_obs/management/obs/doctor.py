"""``manage.py obs doctor``: send a line, a span and a sample, and say of each link whether it holds."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from typing import TYPE_CHECKING, Any

from .rows import printable

if TYPE_CHECKING:
    from django_obs.doctor.finding import Finding

HELP = "send a line, a span and a sample, and say of each link whether it holds"
# Of the shape of --json.
FORMAT = 1


def patience(text: str) -> float:
    """Return seconds. Raises ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 300:
        raise ArgumentTypeError(f"{text!r} must be a number of seconds, more than 0 and at most 300")
    return seconds


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the shape of the answer, and how long to wait for each link."""
    parser.add_argument("--json", dest="as_json", action="store_true", help="answer in JSON, for scripts")
    parser.add_argument(
        "--timeout",
        type=patience,
        default=5.0,
        metavar="SECONDS",
        help="how long to wait for each link, default: %(default)g",
    )


def run(out: Any, *, as_json: bool, timeout: float, **options: Any) -> None:
    """Examine and tell; exit with status 1 if anything is broken."""
    from django.apps import apps

    from django_obs.doctor.examination import examine

    logs: Any = getattr(apps.get_app_config("django_obs"), "logs", None)
    if logs is not None:
        # The answer stands alone on stdout, wherever LOGS.STREAM sends lines.
        logs.sink.stream = "stderr"
    findings = []
    for finding in examine(timeout):
        findings.append(finding)
        if not as_json:
            tell(out, finding)
    states = [finding.state for finding in findings]
    healthy = "broken" not in states
    if as_json:
        out.write(json.dumps(document(findings), indent=2))
    else:
        out.write(f"\n{states.count('broken')} broken, {states.count('warning')} warnings.")
    if not healthy:
        sys.exit(1)


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return what --json prints. Keys may be added; FORMAT changes when one changes its meaning."""
    from django_obs import __version__
    from django_obs.conf import get_settings

    return {
        "format": FORMAT,
        "version": __version__,
        "service": get_settings().service_name,
        "healthy": all(finding.state != "broken" for finding in findings),
        "findings": [finding._asdict() for finding in findings],
    }


def tell(out: Any, finding: Finding) -> None:
    """Write a finding, and below it what to do."""
    out.write(f"{finding.state:<8} {finding.id:<28} {printable(finding.message)}")
    if finding.hint:
        out.write(f"{'':<37} -> {printable(finding.hint)}")
