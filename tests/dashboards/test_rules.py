"""The rules, by Prometheus' own tool: they can be read, and each alert fires when it shall and not before."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from django_obs.dashboards.files import RULES, contents
from django_obs.metrics.catalogue import DECLARATIONS

CASES = Path(__file__).with_name("rules_test.yml")


@pytest.fixture
def promtool(tmp_path: Path):
    """A function that runs promtool where the rules are written out; returns what it said, or fails with it."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("service promtool: not installed")
    for namespace in ("", "acme"):
        (tmp_path / namespace).mkdir(exist_ok=True)
        (tmp_path / namespace / RULES).write_text(contents("0", namespace=namespace)[RULES])
    shutil.copy(CASES, tmp_path)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [binary, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_rules_can_be_read(promtool):
    assert "SUCCESS" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("check", "rules", f"acme/{RULES}")


def test_alerts_fire_when_they_shall(promtool):
    assert "SUCCESS" in promtool("test", "rules", CASES.name)


def test_every_rule_has_a_case():
    rules, cases = contents("0")[RULES], CASES.read_text()

    names = re.findall(r"(?:alert|record): (\S+)", rules)

    assert len(names) > 15
    # The sums by bucket are tested through the percentile that is made of them.
    assert {name for name in names if name not in cases} == {
        "job:django_http_responses:rate5m",
        "job:django_http_requests_latency_seconds:p95",
        "job_le:django_http_requests_latency_seconds:rate5m",
    }


def test_every_alert_is_documented():
    page = (Path(__file__).parent.parent.parent / "docs" / "dashboards.md").read_text()

    for name in re.findall(r"alert: (\S+)", contents("0")[RULES]):
        assert re.search(rf"^\|.*\b{name}\b.*\|", page, flags=re.MULTILINE), name


def test_rules_and_panels_ask_for_metrics_that_there_are():
    known = {declaration.name.removesuffix("_total") for declaration in DECLARATIONS}
    asked = set(
        re.findall(r"(?<![:\w])(?:django_(?:http|db|cache|model|migrations)|http_server)_\w+", str(contents("0")))
    )

    for name in asked:
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known or name in known, name
