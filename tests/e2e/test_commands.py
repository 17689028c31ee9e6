"""Management commands as processes of their own: what a job leaves, and that the others leave nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.exits import total
from tests.e2e.project import PATIENCE, Project
from tests.traces.support import attributes, collector

BILL = """
import logging
from django.core.management.base import BaseCommand
from django_obs import bind

class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("--fail", action="store_true")

    def handle(self, **options):
        bind(batch=7)
        logging.getLogger("shop").info("billing")
        if options["fail"]:
            raise ValueError("no money")
        self.stdout.write("result")
"""


@pytest.fixture
def project(tmp_path):
    with ExitStack() as stack:
        receiver = stack.enter_context(collector())
        project = Project(tmp_path, stack, otlp_endpoint=f"http://127.0.0.1:{receiver.port}")
        project.env["DJANGO_OBS_RUNTIME_DIR"] = str(tmp_path / "runtime")
        # A job exports for the first time at its exit, and imports the exporter in that time.
        project.env["DJANGO_OBS_FLUSH_TIMEOUT"] = str(PATIENCE)
        commands = tmp_path / "shop" / "management" / "commands"
        commands.mkdir(parents=True)
        (commands / "bill.py").write_text(BILL)
        settings = tmp_path / "shop" / "settings.py"
        settings.write_text(settings.read_text().replace('    "django_obs",\n', '    "django_obs",\n    "shop",\n'))
        project.receiver = receiver
        yield project


def manage(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=project.directory,
        env=project.env,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def test_job_leaves_span_line_and_samples(project):
    done = manage(project, "bill")
    assert (done.returncode, done.stdout) == (0, "result\n"), done.stderr
    (span,) = project.receiver.spans()
    assert (span.name, attributes(span)["django.command.name"]) == ("bill", "bill")
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["message"], line["batch"], line["trace_id"]) == ("billing", 7, span.trace_id.hex())

    failed = manage(project, "bill", "--fail")
    assert failed.returncode == 1
    assert project.receiver.spans()[1].status.code == 2
    store = Path(project.env["DJANGO_OBS_RUNTIME_DIR"]) / "metrics"
    assert total(store, "django_command_runs_total") == 2
    # The second run went on in the lane that the first had left.
    assert len(list(store.glob("lane*"))) == 1

    site = project.serve_metrics()
    page = site.request("/metrics")[1].decode()
    assert 'django_command_runs_total{command="bill",status="success"} 1.0' in page
    assert 'django_command_runs_total{command="bill",status="failure"} 1.0' in page
    assert 'django_command_last_success_timestamp_seconds{command="bill"} 1' in page


@pytest.mark.parametrize("arguments", [["check"], ["makemigrations", "--check", "--dry-run"], ["help"]])
def test_other_commands_leave_nothing(project, arguments):
    done = manage(project, *arguments)
    assert done.returncode == 0, done.stderr
    assert project.receiver.spans() == []
    assert not Path(project.env["DJANGO_OBS_RUNTIME_DIR"], "metrics").exists()
    assert done.stderr == ""


def test_job_without_collector_ends_in_time(project):
    project.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "DJANGO_OBS_FLUSH_TIMEOUT": "1"}
    done = manage(project, "bill")
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert "not everything was delivered" in done.stderr
