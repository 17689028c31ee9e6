from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from django_obs.server.tail import MAX_FOLLOWERS
from tests.server.otlp import logs, record, span, traces
from tests.server.test_app import Port


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


def ask(port: Port, query: str = "") -> Any:
    answer = port("GET", f"/tail?{query}")
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_news_are_handed_out_from_the_cursor_on(port: Port) -> None:
    port.application.recent.add_logs(logs(record("Before")))
    cursor = ask(port)["cursor"]
    port.application.recent.add_logs(logs(record("Paid", trace=1, order=7)), role="web")
    port.application.recent.add_traces(traces(span(1, 2, error=True, http__response__status_code=500)), role="web")

    news = ask(port, f"cursor={cursor}&wait=20")

    line, finished = news["items"]
    assert (line["type"], line["message"], line["fields"], line["role"]) == ("line", "Paid", {"order": 7}, "web")
    assert (finished["type"], finished["http_status"], finished["error"]) == ("finished", 500, True)
    assert (finished["duration_ms"], finished["pid"], news["missed"]) == (100.0, 4711, 0)
    assert ask(port, f"cursor={news['cursor']}") == {"cursor": news["cursor"], "missed": 0, "items": []}


def test_poll_waits_for_what_is_wanted(port: Port) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask(port, "cursor=0&wait=25&errors=1")))
    thread.start()
    port.application.recent.add_logs(logs(record("Unwanted")))
    port.application.recent.add_logs(logs(record("Wanted", severity=17)))
    thread.join(60)
    assert [item["message"] for item in found[0]["items"]] == ["Wanted"]


def test_last_ones_are_given_to_begin_with(port: Port) -> None:
    for number in range(10):
        port.application.recent.add_logs(logs(record(str(number), severity=17 if number % 2 else 9)))
    news = ask(port, "last=3&errors=1")
    assert [item["message"] for item in news["items"]] == ["5", "7", "9"]
    assert ask(port, f"cursor={news['cursor']}")["items"] == []


@pytest.mark.parametrize(
    "query",
    [
        "cursor=x",
        "cursor=-1",
        "cursor=" + "9" * 30,
        "wait=x",
        "wait=nan",
        "filter=shop%3Dloud",
        "trace=xyz",
        "slow=-1",
        "&".join(f"a{number}=1" for number in range(30)),
    ],
)
def test_what_cannot_be_followed_is_refused(port: Port, query: str) -> None:
    answer = port("GET", f"/tail?{query}")
    assert answer.status == 400
    assert answer.body.startswith(b"This cannot be followed: ")


def test_stranger_follows_nothing(port: Port) -> None:
    assert port("GET", "/tail", REMOTE_ADDR="192.0.2.1").status == 403
    assert port("GET", "/tail", HTTP_SEC_FETCH_SITE="cross-site").status == 403


def test_followers_leave_connections_to_scrapes(port: Port) -> None:
    recent = port.application.recent
    threads = [
        threading.Thread(target=port, args=("GET", "/tail?cursor=0&wait=25&filter=off")) for _ in range(MAX_FOLLOWERS)
    ]
    ask(port)
    for thread in threads:
        thread.start()
    tail: Any = port.application._tail
    for _ in range(6000):
        if tail._places._value == 0:
            break
        threading.Event().wait(0.01)
    assert port("GET", "/tail").status == 503
    recent.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert port("GET", "/tail").status == 200
