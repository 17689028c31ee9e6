"""Every query of every panel returns data, from a real Prometheus that watches the example project."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest

from django_obs.dashboards.boards import BOARDS
from django_obs.dashboards.files import RULES, contents
from example_project.demo.processes import poll
from tests.dashboards.conftest import PATIENCE, WINDOW, Observed
from tests.dashboards.mixin import FACTS

TEXTS = contents("0")
NAMES = [name for name in TEXTS if name != RULES]


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(TEXTS[name])["panels"] if panel["type"] != "row"]


def filled(expression: str) -> str:
    """Replace the variables of a dashboard as Grafana does when all of everything is chosen."""
    expression = expression.replace("$__rate_interval", WINDOW)
    return re.sub(r"\$\{?\w+\}?", ".+", expression)


def without_data(observed: Observed, expressions: set[str]) -> set[str]:
    """Ask until each expression has given data once, or until patience is at its end; return those that gave none."""
    waiting = set(expressions)

    def asked() -> bool:
        for expression in sorted(waiting):
            result = observed.ask("query", query=expression)["result"]
            # A percentile of nothing and a ratio of nothing to nothing are NaN.
            if any(sample["value"][1] != "NaN" for sample in result):
                waiting.discard(expression)
        return not waiting

    poll(asked, PATIENCE)
    return waiting


def possible(expression: str) -> bool:
    """Tell whether this version of Django has what the query is about."""
    return "django_task_" not in expression or django.VERSION >= (6, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_query_of_every_panel_returns_data(observed: Observed, name: str) -> None:
    asked = {filled(target["expr"]) for panel in panels(name) for target in panel["targets"]}
    assert asked

    assert without_data(observed, set(filter(possible, asked))) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_variable_has_values(observed: Observed, name: str) -> None:
    for variable in json.loads(TEXTS[name])["templating"]["list"]:
        if variable["type"] != "query":
            continue
        found = re.fullmatch(r"label_values\(([^,]+), (\w+)\)", variable["query"]["query"])
        assert found is not None
        matcher = filled(found[1])

        def values(matcher: str = matcher, label: str = found[2]) -> list[str]:
            return observed.ask(f"label/{label}/values", **{"match[]": matcher})

        assert poll(lambda values=values: bool(values()), PATIENCE), variable


@pytest.mark.slow
def test_exemplars_of_latency_panels_are_trace_ids(observed: Observed) -> None:
    asked = [
        filled(target["expr"])
        for name in NAMES
        for panel in panels(name)
        for target in panel["targets"]
        if target["exemplar"]
    ]
    assert asked
    for expression in asked:

        def found(expression: str = expression) -> list[dict[str, Any]]:
            now = time.time()
            return observed.ask("query_exemplars", query=expression, start=str(now - 300), end=str(now + 5))

        assert poll(lambda found=found: bool(found()), PATIENCE), expression
        for series in found():
            for exemplar in series["exemplars"]:
                assert re.fullmatch("[0-9a-f]{32}", exemplar["labels"]["trace_id"])


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "labels"), FACTS.items(), ids=str)
def test_published_dashboards_find_metric_with_labels(observed: Observed, metric: str, labels: set[str]) -> None:
    matchers = ",".join(f'{label}!=""' for label in sorted(labels))

    assert without_data(observed, {f"{metric}{{{matchers}}}"}) == set()


def mixin_queries(checkout: Path) -> Iterator[str]:
    """Return the queries of django-mixin's dashboards, as they are published."""

    def expressions(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(node.get("expr"), str):
                yield node["expr"]
            for value in node.values():
                yield from expressions(value)
        elif isinstance(node, list):
            for value in node:
                yield from expressions(value)

    for path in sorted((checkout / "dashboards_out").glob("*.json")):
        yield from expressions(json.loads(path.read_text()))


@pytest.mark.slow
@pytest.mark.skipif("DJANGO_MIXIN_CHECKOUT" not in os.environ, reason="DJANGO_MIXIN_CHECKOUT names no checkout")
def test_queries_of_published_dashboards_return_data_unchanged(observed: Observed) -> None:
    queries = set(mixin_queries(Path(os.environ["DJANGO_MIXIN_CHECKOUT"])))
    assert len(queries) > 30
    chosen = {"$cluster": "town", "$namespace": "shops", "$__rate_interval": WINDOW, "$job": "django"}

    def as_grafana_does(query: str) -> str:
        # Some compare with the week before, when this site was not yet there.
        query = query.replace("offset 1w", "")
        for name, value in chosen.items():
            query = query.replace(name, value)
        return filled(query)

    assert without_data(observed, {as_grafana_does(query) for query in queries}) == set()


# -- Without a Prometheus


def test_ids_and_names_are_unique() -> None:
    assert len({board.uid for board in BOARDS}) == len(BOARDS)
    for name in NAMES:
        ids = [panel["id"] for panel in json.loads(TEXTS[name])["panels"]]
        assert len(set(ids)) == len(ids)
        titles = [panel["title"] for panel in panels(name)]
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(TEXTS[name])["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        taken |= cells


@pytest.mark.parametrize(("traces", "wanted"), [("tempo", "span.http.route"), ("jaeger", '"service":"shop"')])
def test_latency_by_route_links_to_traces(traces: Any, wanted: str) -> None:
    from urllib.parse import unquote

    board = json.loads(contents("0", traces=traces, service="shop")["requests.json"])

    (panel,) = [panel for panel in board["panels"] if panel["title"].startswith("Latency by route")]
    (link,) = panel["fieldConfig"]["defaults"]["links"]
    panes = json.loads(unquote(link["url"].partition("panes=")[2]))["traces"]
    assert wanted in json.dumps(panes["queries"], separators=(",", ":"))
    assert panes["datasource"] == "${traces}"
    assert {variable["query"] for variable in board["templating"]["list"] if variable["name"] == "traces"} == {traces}


def test_namespace_of_django_prometheus_is_in_all_its_names_and_no_other() -> None:
    texts = contents("0", namespace="acme")
    board = texts["requests.json"]

    assert "acme_django_http_responses_total_by_status_total" in board
    assert not re.search(r"(?<!acme_)django_http_", board)
    assert "acme_http_server" not in board
    assert "acme_django_db_errors_total" in texts[RULES]
    assert "acme_" not in texts["pipelines.json"]
