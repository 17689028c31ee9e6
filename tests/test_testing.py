from __future__ import annotations

from pathlib import Path

from tests.test_apps import run


def test_capture_that_needs_a_signal_that_is_off_says_so(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        from django_obs.testing import capture_logs, capture_spans
        for capture in (capture_logs, capture_spans):
            try:
                with capture():
                    pass
            except RuntimeError as error:
                print(error)
        """,
        tmp_path,
        DJANGO_OBS_LOGS_ENABLED="false",
        DJANGO_OBS_TRACES_ENABLED="false",
    )

    logs, spans = done.stdout.splitlines()
    assert "DJANGO_OBS['LOGS']['ENABLED']" in logs
    assert "DJANGO_OBS['TRACES']['ENABLED']" in spans


def test_lines_are_captured_also_where_the_test_command_is_quiet(tmp_path: Path) -> None:
    done = run(
        """
        sys.argv = ["manage.py", "test"]
        configure()
        from django_obs.testing import capture_logs
        with capture_logs() as lines:
            get()
        get()
        print([line["message"] for line in lines])
        """,
        tmp_path,
        DJANGO_OBS_TRACES_ENABLED="false",
    )

    assert done.stdout == "['GET / 200']\n"
    assert "GET / 200" not in done.stderr
