from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_obs.metrics.scraper import Scraper
from django_obs.server.console import pipelines, tally
from django_obs.server.console.tally import NONE, Tally, View
from tests.server.worker import Worker

INFINITY = float("inf")


def made(*cells: float, seconds: float = 1.0, errors: float = 0.0, last: float = INFINITY) -> Tally:
    return Tally((0.1, 1.0, last), array("d", cells), seconds, errors)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make() -> Worker:
        workers.append(Worker(tmp_path))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.process.poll() is None:
            worker.close()


def test_growth_is_what_came_since() -> None:
    grown = made(5, 3, 0, seconds=4.0, errors=2).since(made(4, 1, 0, seconds=1.5, errors=1))

    assert list(grown.cells) == [1, 2, 0]
    assert (grown.count, grown.seconds, grown.errors) == (3, 2.5, 1)
    assert grown.mean == pytest.approx(2.5 / 3)
    assert grown.error_share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "earlier",
    [
        made(9, 9, 9),  # the store was removed since
        made(1, 0, 1),  # one bucket alone tells it
        made(0, 0, 0, errors=5),
        made(0, 0, 0, last=10.0),  # another version of the project, with other buckets
        None,
    ],
)
def test_counts_that_began_anew_are_all_new(earlier: Tally | None) -> None:
    now = made(2, 1, 0)
    assert now.since(earlier) is now


def test_nothing_has_neither_mean_nor_share() -> None:
    assert (NONE.count, NONE.mean, NONE.error_share, NONE.quantile(0.5)) == (0, None, None, None)


def test_requests_of_the_dead_and_the_living_are_added_up(start: Callable[..., Worker], tmp_path: Path) -> None:
    scraper = Scraper(lambda: tmp_path / "metrics")
    assert tally.total(scraper.read()) == NONE
    assert tally.by_view(scraper.read()) == {}
    first, second = start(), start()
    for path in ("/", "/items/1/", "/items/2/", "/fail/", "/nowhere/"):
        first.get(path)
    second.get("/items/3/")
    before = tally.total(scraper.read())
    assert (before.count, before.errors) == (6, 1)

    first.kill()

    assert tally.total(scraper.read()) == before
    third = start()  # goes on from the lane of the first
    third.get("/items/4/")
    page = scraper.read()
    assert tally.total(page).since(before).count == 1
    views = tally.by_view(page)
    assert {view: found.count for view, found in views.items()} == {
        View("GET", "/"): 1,
        View("GET", "/items/<int:pk>/"): 4,
        View("GET", "/fail/"): 1,
        View("GET", ""): 1,
    }
    assert views[View("GET", "/fail/")].errors == 1
    assert sum(found.seconds for found in views.values()) == pytest.approx(tally.total(page).seconds)
    # The same reading also tells what the pipelines have passed on.
    rows = {row.name: row for row in pipelines.table(page, None)}
    assert rows["metrics"].passed == page.series > 0
    assert rows["logs"].losses[0].total == 0


@pytest.mark.parametrize("kind", ["Histogram", "Summary"])
def test_metric_of_somebody_else_with_this_name_is_left_out(
    start: Callable[..., Worker], tmp_path: Path, kind: str
) -> None:
    start().do(
        f"import prometheus_client; "
        f"prometheus_client.{kind}('http_server_request_duration_seconds', 'Theirs', ['a']).labels('b').observe(1)"
    )
    page = Scraper(lambda: tmp_path / "metrics").read()

    assert page.family("http_server_request_duration_seconds") is not None
    assert tally.total(page) == NONE
    assert tally.by_view(page) == {}


def test_views_that_take_little_time_are_left_out(
    start: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MOST_VIEWS", 1)
    worker = start()
    worker.get("/")
    worker.get("/fail/")

    assert len(tally.by_view(Scraper(lambda: tmp_path / "metrics").read())) == 1
