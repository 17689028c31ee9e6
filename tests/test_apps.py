from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROJECT = """
import os, sys, threading
from django.conf import settings
import django

def configure(**own):
    given = dict(
        SECRET_KEY="x",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.urls",
        INSTALLED_APPS=["django.contrib.contenttypes", "django_obs"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    given.update(own)
    settings.configure(**given)
    django.setup()

def get(path="/"):
    from django.test import Client
    return Client(raise_request_exception=False).get(path)
"""


def run(code: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a project of its own in another process, with nothing of the tests' settings."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "OTEL_"))}
    # Unbuffered, print() writes text and newline one by one, and a line of the log may come in between.
    environ |= {"PYTHONUNBUFFERED": "", "PYTHONPATH": str(ROOT), "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "run"), **env}
    done = subprocess.run(
        [sys.executable, "-c", PROJECT + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_ready_starts_no_thread_and_opens_no_file(tmp_path: Path) -> None:
    done = run(
        """
        before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
        configure()
        after = set(os.listdir("/proc/self/fd")) if before else set()
        print(len(threading.enumerate()), sorted(after - before))
        """,
        tmp_path,
    )

    assert done.stdout == "1 []\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("signal", ["LOGS", "TRACES", "METRICS"])
def test_signal_that_is_off_is_not_imported_and_the_others_work(signal: str, tmp_path: Path) -> None:
    done = run(
        f"""
        configure()
        assert get().status_code == 200
        print(sorted(name for name in sys.modules if name.startswith("django_obs.{signal.lower()}.")))
        """,
        tmp_path,
        **{f"DJANGO_OBS_{signal}_ENABLED": "false", "DJANGO_OBS_TRACES_ENDPOINT": "http://127.0.0.1:9"},
    )

    assert "[]" in done.stdout.splitlines()
    assert ('"GET / 200"' in done.stdout) is (signal != "LOGS")


def test_all_signals_off_leave_the_project_alone(tmp_path: Path) -> None:
    done = run(
        """
        configure(MIDDLEWARE=())
        assert settings.MIDDLEWARE == ()
        assert get().status_code == 200
        print(len(threading.enumerate()))
        """,
        tmp_path,
        DJANGO_OBS_LOGS_ENABLED="false",
        DJANGO_OBS_TRACES_ENABLED="false",
        DJANGO_OBS_METRICS_ENABLED="false",
    )

    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    "middleware",
    [
        "['django.middleware.common.CommonMiddleware']",
        "('django.middleware.common.CommonMiddleware',)",
        "lazy(lambda: ['django.middleware.common.CommonMiddleware'], list)()",
    ],
)
def test_middleware_is_put_outermost(middleware: str, tmp_path: Path) -> None:
    done = run(
        f"""
        from django.utils.functional import lazy
        configure(MIDDLEWARE={middleware})
        print(list(settings.MIDDLEWARE))
        """,
        tmp_path,
    )

    assert done.stdout == (
        "['django_obs.middleware.ObservabilityMiddleware', 'django.middleware.common.CommonMiddleware']\n"
    )


def test_middleware_that_the_project_placed_stays_there(tmp_path: Path) -> None:
    done = run(
        """
        ours = "django_obs.middleware.ObservabilityMiddleware"
        configure(MIDDLEWARE=["django.middleware.common.CommonMiddleware", ours])
        print(settings.MIDDLEWARE[1] == ours, len(settings.MIDDLEWARE))
        """,
        tmp_path,
    )

    assert done.stdout == "True 2\n"


def test_bad_setting_is_one_warning_and_its_default_holds(tmp_path: Path) -> None:
    done = run(
        """
        configure(DJANGO_OBS={"LOGS": {"QUEUE_SIZE": "many", "FORMAT": "xml"}, "TRACES": {"ENABLED": False}})
        assert get().status_code == 200
        """,
        tmp_path,
    )

    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert "QUEUE_SIZE" in lines[0]
    assert json.loads(done.stdout)["message"] == "GET / 200"


@pytest.mark.parametrize(
    "damage",
    [
        "os.symlink('/', path)",
        "open(path, 'w').close()",
        "os.mkdir(path); os.chmod(path, 0o777)",
    ],
)
def test_runtime_directory_that_is_refused_does_not_hurt_the_site(damage: str, tmp_path: Path) -> None:
    done = run(
        f"""
        path = os.environ["DJANGO_OBS_RUNTIME_DIR"]
        {damage}
        configure()
        assert get().status_code == 200
        assert get().status_code == 200
        """,
        tmp_path,
        DJANGO_OBS_TRACES_ENABLED="false",
    )

    assert done.stdout.count('"GET / 200"') == 2
    assert "Traceback" not in done.stderr
    assert 1 <= done.stderr.count("Runtime directory") <= 2


def test_provider_that_was_there_before_is_used(tmp_path: Path) -> None:
    done = run(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        configure()
        from django.core.management import call_command
        call_command("migrate", verbosity=0)
        get("/queries/")
        spans = exporter.get_finished_spans()
        server = spans[-1]
        print([span.name for span in spans if span.parent == server.context or span is server])
        """,
        tmp_path,
    )

    names = ast.literal_eval(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    assert names[-1] == "GET /queries/"
    assert names[:2] == ["SELECT django_content_type"] * 2


def test_telemetry_that_fails_does_not_fail_the_request(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from django.apps import apps
        telemetry = apps.get_app_config("django_obs").telemetry

        class Broken:
            def __getattr__(self, name):
                def fail(*args, **kwargs):
                    raise ZeroDivisionError(name)
                return fail

        telemetry.open_tracing = Broken
        telemetry.open_instruments = Broken
        telemetry.access = Broken()
        from django.test import Client
        client = Client()
        for path in ("/", "/", "/stream/"):
            response = client.get(path)
            assert response.status_code == 200
            b"".join(response)
        """,
        tmp_path,
    )

    assert "reported once" in done.stderr
    assert done.stderr.count("ObservabilityMiddleware.open failed") == 1


def test_libraries_that_do_not_fit_do_not_fail_the_site(tmp_path: Path) -> None:
    done = run(
        """
        import sys
        configure()
        # As where a package is damaged, or too old.
        sys.modules["django_obs.traces.requests"] = sys.modules["django_obs.metrics.instruments"] = None
        assert get().status_code == 200
        """,
        tmp_path,
    )

    assert done.stderr.count("ObservabilityMiddleware.open_tracing failed") == 1
    assert done.stderr.count("ObservabilityMiddleware.open_instruments failed") == 1


@pytest.mark.parametrize(("filter_", "lines"), [("", 0), ("info", 1)])
def test_test_command_shows_no_line_per_request_unless_asked(filter_: str, lines: int, tmp_path: Path) -> None:
    done = run(
        """
        sys.argv = ["manage.py", "test"]
        configure()
        assert get().status_code == 200
        """,
        tmp_path,
        DJANGO_OBS_TRACES_ENABLED="false",
        DJANGO_OBS_LOGS_FILTER=filter_,
    )

    assert (done.stdout + done.stderr).count('"GET / 200"') == lines


@pytest.mark.parametrize("ours_last", [True, False])
def test_app_beside_one_that_inserts_middleware_sees_every_request_once(ours_last: bool, tmp_path: Path) -> None:
    (tmp_path / "inserter.py").write_text(
        textwrap.dedent(
            """
            from django.apps import AppConfig
            from django.conf import settings

            class Inserter(AppConfig):
                name = "inserter"
                path = "."

                def ready(self):
                    settings.MIDDLEWARE = ["inserter.mark", *settings.MIDDLEWARE]

            def mark(get_response):
                def middleware(request):
                    response = get_response(request)
                    response["X-Inserted"] = "yes"
                    return response
                return middleware
            """
        )
    )
    apps = ["inserter.Inserter", "django_obs"]
    done = run(
        f"""
        configure(INSTALLED_APPS=["django.contrib.contenttypes", *{apps if ours_last else apps[::-1]}], MIDDLEWARE=())
        print(get().headers["X-Inserted"], [path.rpartition(".")[2] for path in settings.MIDDLEWARE])
        """,
        tmp_path,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]),
        DJANGO_OBS_TRACES_ENABLED="false",
    )

    both = ["ObservabilityMiddleware", "mark"]
    assert f"yes {both if ours_last else both[::-1]}\n" in done.stdout
    assert done.stdout.count('"GET / 200"') == 1


def test_mail_and_error_tracking_get_a_failure_as_before(tmp_path: Path) -> None:
    # Sentry's SDK listens by putting its own in the place of Logger.callHandlers.
    done = run(
        """
        import logging
        tracked, call_handlers = [], logging.Logger.callHandlers

        def track(self, record):
            if record.levelno >= logging.ERROR and record.name == "django.request":
                tracked.append((record.exc_info[0].__name__, record.status_code, record.request.path))
            call_handlers(self, record)

        logging.Logger.callHandlers = track
        configure(
            ADMINS=["a@example.com"] if django.VERSION >= (6,) else [("A", "a@example.com")],
            EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend",
        )
        from django.core import mail
        mail.outbox = []
        assert get("/fail/").status_code == 500
        print(tracked)
        print(len(mail.outbox), "broken on purpose" in mail.outbox[0].body)
        """,
        tmp_path,
        DJANGO_OBS_TRACES_ENABLED="false",
    )

    shown = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert shown == ["[('ValueError', 500, '/fail/')]", "1 True"]
    assert done.stdout.count("Traceback (most recent call last)") == 1


def test_orders_are_read_often_enough_to_reach_a_process_within_a_second(tmp_path: Path) -> None:
    run(
        """
        configure()
        get()
        from django_obs.lifecycle import guard
        (job,) = [job for job in guard.worker.jobs if getattr(job.run, "__qualname__", "") == "Orders.poll"]
        assert job.seconds <= 0.5, job.seconds
        assert guard.worker.running
        """,
        tmp_path,
    )


def test_child_forked_while_a_thread_makes_metrics_comes_to_its_end(tmp_path: Path) -> None:
    done = run(
        """
        import time
        from contextlib import ExitStack
        configure()
        get()
        from django.apps import apps
        from prometheus_client import REGISTRY
        metrics = apps.get_app_config("django_obs").metrics
        locks = [
            metrics._lock, metrics.instruments.catalogue._lock, metrics.instruments.requests._lock, REGISTRY._lock,
        ]
        held, forked = threading.Event(), threading.Event()

        def hold():
            with ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                # As at the first look at the pipelines: the child will look for its metrics, too.
                metrics.instruments.catalogue._made.clear()
                held.set()
                forked.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        forked.set()
        thread.join()
        deadline = time.monotonic() + 30
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended and time.monotonic() < deadline:
            time.sleep(0.02)
            ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, 9)
        print(os.waitstatus_to_exitcode(status) if ended else "hangs")
        """,
        tmp_path,
        PYTHONWARNINGS="ignore",
    )
    assert done.stdout.splitlines()[-1] == "7"
