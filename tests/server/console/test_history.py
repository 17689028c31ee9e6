from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from django_obs.metrics.scraper import Page, Scraper
from django_obs.server.console import pipelines
from django_obs.server.console.history import EVERY, GAP, KEEP, VIEWS_EVERY, History, Sample
from django_obs.server.console.pipelines import Loss
from django_obs.server.console.tally import NONE, Tally, View

EMPTY = Page([], [], [], [], {}, 0, 0, 0, 0)


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """Counts how often it is read."""

    def __init__(self) -> None:
        self.readings = 0

    def read(self) -> Page:
        self.readings += 1
        return EMPTY


def counted(fast: float, slow: float = 0, errors: float = 0) -> Tally:
    return Tally((0.1, 1.0, float("inf")), array("d", [fast, slow, 0]), fast * 0.05 + slow * 0.5, errors)


def filled(*samples: tuple[float, Tally]) -> History:
    """Make a history of samples that were taken so many seconds after the first."""
    history = History(lambda: EMPTY)
    history._samples.extend(Sample(1_800_000_000 + at, at, requests, {}) for at, requests in samples)
    return history


def test_nobody_looking_nothing_is_read() -> None:
    store, clock = Store(), Clock()
    history = History(store.read, clock=clock)
    clock.now += 3600
    history.take(EMPTY)

    assert store.readings == 0
    assert len(history.samples) == 1


def test_look_leaves_a_sample_every_few_seconds() -> None:
    store, clock = Store(), Clock()
    history = History(store.read, clock=clock)
    for _ in range(21):
        history.look()
        clock.now += EVERY / 4

    assert store.readings == 21
    assert len(history.samples) == 6


def test_samples_are_kept_for_a_while_and_by_view_more_rarely() -> None:
    store, clock = Store(), Clock()
    history = History(store.read, clock=clock)
    for _ in range(1000):
        history.look()
        clock.now += EVERY

    assert len(history.samples) == KEEP / EVERY + 1
    kept = [sample for sample in history.samples if sample.views is not None]
    assert len(kept) == KEEP // VIEWS_EVERY
    assert history.base() is kept[0]


def test_unreadable_store_is_said_to_who_looks(tmp_path: Path) -> None:
    def directory() -> Path:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    history = History(Scraper(directory).read)
    with pytest.raises(PermissionError):
        history.look()
    assert history.samples == []


def test_curves_are_rates_shares_and_quantiles() -> None:
    history = filled((0, counted(0)), (5, counted(50, 50, errors=10)), (10, counted(50, 50, errors=10)))

    assert history.series() == {
        "time": [1_800_000_005, 1_800_000_010],
        "rate": [20.0, 0.0],
        "errors": [0.1, None],
        "p50": [0.1, None],
        "p95": [0.91, None],
        "p99": [0.982, None],
    }


def test_store_that_began_anew_makes_no_negative_rate() -> None:
    history = filled((0, counted(1000)), (5, counted(30)), (10, counted(40)))

    assert history.series()["rate"] == [6.0, 2.0]


def test_long_silence_is_no_point_of_the_curve() -> None:
    history = filled((0, counted(0)), (GAP + 1, counted(100)), (GAP + 6, counted(110)))

    assert history.series()["rate"] == [2.0]


def test_latest_reaches_back_as_far_as_asked_or_known() -> None:
    assert filled().latest(60) is None
    assert filled((0, counted(9))).latest(60) is None
    history = filled(*((at, counted(at)) for at in range(0, 300, 20)))

    latest = history.latest(60)
    assert latest is not None
    assert (latest.seconds, latest.requests.count) == (60, 60)
    whole = history.latest(1e9)
    assert whole is not None
    assert (whole.seconds, whole.requests.count) == (280, 280)


def test_base_is_the_oldest_that_knows_the_views() -> None:
    history = filled((0, NONE))
    assert history.base() is None
    views = {View("GET", "/"): counted(1)}
    history._samples.append(Sample(0.0, 5.0, counted(1), {}, views))
    base = history.base()
    assert base is not None
    assert base.views is views


@pytest.mark.parametrize(
    ("total", "earlier", "lately", "state"),
    [
        (0, 0, 0, ""),
        (7, 7, 0, "was-lost"),
        (7, 3, 4, "lost"),
        # Nobody knows since when: it may be now.
        (7, None, None, "lost"),
        # The store was removed since.
        (7, 9, 0, "was-lost"),
    ],
)
def test_loss_is_red_while_it_goes_on(total: int, earlier: int | None, lately: int | None, state: str) -> None:
    page = EMPTY._replace(damaged=total)
    before = None if earlier is None else {"metrics damaged": earlier}

    (row,) = [row for row in pipelines.table(page, before) if row.name == "metrics"]

    assert row.losses[1] == Loss("damaged", total, lately)
    assert row.losses[1].state == state
