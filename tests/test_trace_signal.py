from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_apps import run

SILENT = {"DJANGO_OBS_TRACES_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "600000"}


def test_setup_imports_neither_api_nor_pipeline(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from django.apps import apps
        assert apps.get_app_config("django_obs").trace_signal.pipeline is None
        print([name for name in sys.modules if name.startswith("opentelemetry.trace")])
        print([name for name in sys.modules if name.startswith("django_obs.traces")])
        """,
        tmp_path,
    )

    assert done.stdout.splitlines() == ["[]", "[]"]


@pytest.mark.parametrize(
    "first",
    [
        "from opentelemetry import trace",
        "import opentelemetry.trace as trace",
        "from opentelemetry import propagate, trace",
        "from opentelemetry.trace.propagation import tracecontext; from opentelemetry import trace",
        "from opentelemetry.sdk.trace import TracerProvider; from opentelemetry import trace",
        "from django_obs.traces.instrumentor import DjangoInstrumentor; from opentelemetry import trace",
        "from django_obs.traces.encoder import LeafSource; from opentelemetry import trace",
        "from django_obs.traces.transport import open_transport; from opentelemetry import trace",
    ],
)
def test_whoever_imports_the_api_finds_our_provider(first: str, tmp_path: Path) -> None:
    done = run(
        f"""
        configure()
        {first}
        from django.apps import apps
        config = apps.get_app_config("django_obs")
        print(trace.get_tracer_provider() is config.trace_signal.pipeline.provider)
        with trace.get_tracer("shop").start_as_current_span("price") as span:
            print(trace.get_current_span() is span, type(span).__module__)
        """,
        tmp_path,
        **SILENT,
    )

    assert done.stdout.splitlines() == ["True", "True django_obs.traces.span"]


def test_span_of_the_api_outside_of_requests_has_queries_cache_calls_and_lines(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        import json, logging
        from django.core.cache import cache
        from django.db import connection
        # Both doors were used before there was a span.
        connection.cursor().execute("SELECT 1")
        cache.get("before")
        logging.getLogger("shop").warning("before")
        from opentelemetry import trace
        from django_obs.testing import capture_logs, capture_spans
        with capture_logs() as lines, capture_spans() as spans:
            with trace.get_tracer("shop").start_as_current_span("price"):
                connection.cursor().execute("SELECT 2")
                cache.get("inside")
                logging.getLogger("shop").warning("inside")
        root = spans[-1]
        print([span.name for span in spans if span.parent_id == root.span_id], root.name)
        print(lines[-1]["trace_id"] == root.trace_id, lines[-1]["span_id"] == root.span_id)
        """,
        tmp_path,
        **SILENT,
    )

    assert done.stdout.splitlines()[-2:] == ["['SELECT', 'cache get'] price", "True True"]


def test_provider_that_is_set_after_setup_comes_too_late(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry import trace
        trace.set_tracer_provider(TracerProvider())
        print(type(trace.get_tracer_provider()).__module__)
        """,
        tmp_path,
        **SILENT,
    )

    assert "django_obs.traces.provider" in done.stdout.splitlines()
    assert "not allowed" in done.stdout + done.stderr


def test_server_that_has_loaded_its_middleware_has_imported_all(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from django.core.handlers.wsgi import WSGIHandler
        WSGIHandler()
        before = set(sys.modules)
        get("/")
        get("/queries/")
        ours = ("django_obs", "opentelemetry", "prometheus_client", "pythonjsonlogger", "typing_extensions")
        print("late", sorted(name for name in set(sys.modules) - before if name.startswith(ours)))
        """,
        tmp_path,
        **SILENT,
    )

    assert "late []" in done.stdout.splitlines()


def test_templates_and_middleware_are_traced_where_asked_for(tmp_path: Path) -> None:
    done = run(
        """
        configure(
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
            TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
            DJANGO_OBS={"TRACES": {"TEMPLATES": True, "MIDDLEWARE": True}},
        )
        from django.core.handlers.wsgi import WSGIHandler
        WSGIHandler()
        from opentelemetry import trace
        from django.template import engines
        from django_obs.testing import capture_spans
        with capture_spans() as spans:
            with trace.get_tracer("shop").start_as_current_span("price"):
                engines["django"].from_string("x").render()
            get()
        print("spans", [span.name for span in spans])
        """,
        tmp_path,
        **SILENT,
    )

    assert "spans ['render <string>', 'price', 'CommonMiddleware', 'GET /']" in done.stdout.splitlines()


def test_threads_that_need_it_at_once_build_one(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from importlib import import_module
        from django.apps import apps
        signal = apps.get_app_config("django_obs").trace_signal
        gate, found, told = threading.Barrier(8), [], []
        signal.when_built(told.append)

        def need(number):
            gate.wait()
            if number % 2:
                found.append(signal.build().provider)
            else:
                found.append(import_module("opentelemetry.trace").get_tracer_provider())

        threads = [threading.Thread(target=need, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        print(len(found), len(set(found)), len(told))
        """,
        tmp_path,
        **SILENT,
    )

    assert done.stdout == "8 1 1\n"


@pytest.mark.parametrize("built_before", [True, False])
def test_forked_child_has_a_pipeline_of_its_own(built_before: bool, tmp_path: Path) -> None:
    done = run(
        f"""
        configure()
        from django.apps import apps
        from django_obs.lifecycle import guard
        signal = apps.get_app_config("django_obs").trace_signal
        parent = {built_before} and signal.build().provider.resource_attributes["service.instance.id"]
        if (pid := os.fork()) == 0:
            pipeline = signal.build()
            resource = pipeline.provider.resource_attributes
            pipeline.tracer.start_span("child").end()
            assert signal.stats()["queued"] == 1
            pipeline.provider.sink = None
            sys.exit(0 if resource["process.pid"] == os.getpid() and resource["service.instance.id"] != parent else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        print(signal.stats().get("queued"), signal.force_flush(5.0))
        """,
        tmp_path,
        **SILENT,
        DJANGO_OBS_FLUSH_TIMEOUT="0.5",
    )

    assert done.stdout == ("0 True\n" if built_before else "None True\n")


def test_command_of_another_app_that_serves_imports_the_tracing_for_its_children(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from django.apps import apps
        from django.core.management import call_command
        from django.core.management.base import BaseCommand
        signal = apps.get_app_config("django_obs").trace_signal
        call_command("check", verbosity=0)
        print(signal.pipeline)

        class Command(BaseCommand):
            requires_system_checks = []
            django_obs_job = False

            def handle(self, *args, **options):
                print(signal.pipeline is not None)

        Command.__module__ = "queue.management.commands.work"
        call_command(Command())
        """,
        tmp_path,
        **SILENT,
    )

    assert done.stdout.splitlines()[-2:] == ["None", "True"]
