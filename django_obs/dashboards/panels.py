"""What a dashboard is made of, and how Grafana writes it.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

Kind = Literal["timeseries", "stat", "table", "heatmap"]
TraceStore = Literal["tempo", "jaeger"]

# Of everything in Grafana that a dashboard of ours may be connected with.
TAG = "django_obs"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHTS: Mapping[Kind, int] = {"timeseries": 8, "stat": 4, "table": 10, "heatmap": 9}
WIDTHS: Mapping[Kind, int] = {"timeseries": 8, "stat": 6, "table": 24, "heatmap": 16}
# The version of the JSON model: that of Grafana 9, which later ones migrate.
SCHEMA_VERSION = 37
ROUTE = "${__field.labels.http_route:percentencode}"


@dataclass(frozen=True)
class Query:
    """A query in PromQL, in which ``@`` stands for the matchers of the dashboard's variables, and a legend."""

    expression: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    """A graph, a number or a table; ``unit`` as Grafana names units."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""
    kind: Kind = "timeseries"
    by_route: bool = False
    """Whether the series have a label ``http_route``, by which their traces are found."""
    group: str = ""
    """Heading of the row that begins with this panel."""


@dataclass(frozen=True)
class Variable:
    """A choice above the panels: the values that a label of a metric has."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    variables: tuple[Variable, ...] = ()


# Every dashboard has these. Each process that answers requests has this metric from the first one on, and runmetrics
# the other one in any case.
SCOPE = (
    Variable("job", "django_obs_scrapes_total", "job"),
    Variable("instance", "django_obs_scrapes_total", "instance"),
)


def matchers(variables: Sequence[Variable]) -> str:
    """Return the matchers that the variables stand for."""
    return ",".join(f'{each.label}=~"${each.name}"' for each in variables)


def expression(query: Query) -> str:
    """Return the query with the matchers of the variables."""
    return query.expression.replace("@", matchers(SCOPE))


def dashboard(board: Board, *, traces: TraceStore, service: str) -> dict[str, Any]:
    """Return a dashboard as Grafana writes it, with links to the traces of a route in that kind of store."""
    return {
        "uid": f"django-obs-{board.uid}",
        "title": f"Django / {board.title}",
        "description": board.description,
        "tags": [TAG, "django"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "title": "Django",
                "type": "dashboards",
                "tags": [TAG],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [*_data_sources(traces), *(_choice(each) for each in (*SCOPE, *board.variables))]},
        "annotations": {"list": []},
        "panels": _placed(board, traces, service),
    }


def _data_sources(traces: TraceStore) -> list[dict[str, Any]]:
    kinds = (("datasource", "Prometheus", "prometheus"), ("traces", "Traces", traces))
    return [{"name": name, "label": label, "type": "datasource", "query": kind} for name, label, kind in kinds]


def _choice(variable: Variable) -> dict[str, Any]:
    within = "" if variable.label == "job" else '{job=~"$job"}'
    question = f"label_values({variable.metric}{within}, {variable.label})"
    return {
        "name": variable.name,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": question, "refId": "values"},
        "definition": question,
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _placed(board: Board, traces: TraceStore, service: str) -> list[dict[str, Any]]:
    """Return the panels side by side, as many as fit, below the headings of their groups."""
    placed: list[dict[str, Any]] = []
    x = y = height = 0

    def add(made: dict[str, Any], wide: int, high: int) -> None:
        nonlocal x, y, height
        if x + wide > COLUMNS:
            x, y, height = 0, y + height, 0
        placed.append({"id": len(placed) + 1, **made, "gridPos": {"x": x, "y": y, "w": wide, "h": high}})
        x, height = x + wide, max(height, high)

    for panel in board.panels:
        if panel.group:
            x, y, height = 0, y + height, 0
            add({"type": "row", "title": panel.group, "collapsed": False, "panels": []}, COLUMNS, 1)
        add(_drawn(panel, traces, service), WIDTHS[panel.kind], HEIGHTS[panel.kind])
    return placed


def _drawn(panel: Panel, traces: TraceStore, service: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults |= {"min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}
    if panel.by_route:
        defaults["links"] = [
            {"title": "Traces of this route", "url": traces_url(traces, service), "targetBlank": True},
        ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel.kind),
        "targets": [_target(query, panel.kind, number) for number, query in enumerate(panel.queries)],
    }


def _options(kind: Kind) -> dict[str, Any]:
    match kind:
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
        case "table":
            return {"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Spectral", "mode": "scheme"}}
        case _:
            return {
                "tooltip": {"mode": "multi", "sort": "desc"},
                "legend": {"displayMode": "list", "placement": "bottom"},
            }


def _target(query: Query, kind: Kind, number: int) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + number),
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": expression(query),
        "legendFormat": query.legend or "__auto",
        "exemplar": query.exemplars,
        "range": kind != "table",
        "instant": kind == "table",
        "format": {"table": "table", "heatmap": "heatmap"}.get(kind, "time_series"),
    }


def traces_url(traces: TraceStore, service: str) -> str:
    """Return a link to the traces of the route whose series it is on, in Grafana's Explore."""
    query: dict[str, Any] = {"refId": "A", "datasource": {"type": traces, "uid": "${traces}"}}
    if traces == "tempo":
        query |= {"queryType": "traceql", "query": '{ span.http.route = "' + ROUTE + '" }'}
    else:
        query |= {"queryType": "search", "service": service, "tags": f'http.route="{ROUTE}"'}
    time = {"from": "${__from}", "to": "${__to}"}
    panes = {"traces": {"datasource": "${traces}", "queries": [query], "range": time}}
    # What Grafana replaces stays as it is.
    return "/explore?schemaVersion=1&panes=" + quote(json.dumps(panes), safe="${}:_.")
