from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from example_project.demo.processes import poll
from tests.e2e.conftest import Backend
from tests.e2e.project import PATIENCE, Project

PAGE = Path(__file__).parent.parent.parent / "docs" / "first-minutes.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="tests run without the source tree")
def test_what_the_page_shows_leaves_what_it_says(tmp_path: Path, collector: Backend) -> None:
    (urls,) = re.findall(r"```python\n(import logging\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (command,) = re.findall(r"^python manage\.py obs filter '(.+)' --for 10m$", PAGE.read_text(), flags=re.MULTILINE)
    with ExitStack() as stack:
        project = Project(tmp_path, stack, otlp_endpoint=collector.url)
        (tmp_path / "shop" / "urls.py").write_text(urls)
        project.manage("migrate", "--verbosity=0")
        site, metrics = project.serve("runserver"), project.serve_metrics()

        response, _ = site.request("/hello/bob/")
        trace_id = response.headers["x-trace-id"]
        said, request = site.wait_lines(2, trace_id=trace_id)
        spans = collector.receiver.trace(trace_id, timeout=PATIENCE)

        assert (said["message"], said["guest"], said["known"]) == ("said hello", "bob", False)
        assert (request["message"], request["guest"]) == ("GET /hello/bob/ 200", "bob")
        assert {span.name for span in spans} == {"GET /hello/<name>/", "look up", "SELECT auth_user"}
        assert poll(lambda: b'greetings_total{known="False"} 1.0' in metrics.request("/metrics")[1], PATIENCE)

        # The project of the tests has another name.
        project.manage("obs", "filter", command.replace("mysite", "shop"), "--for", "10m")

        def is_told_more() -> bool:
            site.request("/hello/bob/")
            return b"asked the database" in site.process.out.read_bytes()

        assert poll(is_told_more, PATIENCE)
