"""What happens to files happens here on purpose: the scrape goes on, and no worker dies."""

from __future__ import annotations

import array
import os
import struct
from typing import TYPE_CHECKING

import pytest

from django_obs.metrics.lanes import HEADER, HEADER_SIZE, MAGIC, Lane, owned, read_all
from django_obs.metrics.scraper import Scraper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A worker that is dead, and a store with two lanes.
STORE = """
    adoption.install(store)
    jobs = Counter("jobs", "j", ["kind"])
    seconds = Histogram("seconds", "s")
    jobs.labels("a").inc(3)
    seconds.observe(0.3)
    in_child(lambda: jobs.labels("a").inc(4))
"""


@pytest.fixture
def directory(run_apart: Callable[[str], str], tmp_path: Path) -> Path:
    run_apart(STORE)
    return tmp_path / "metrics"


def totals(directory: Path) -> dict[str, float]:
    families = Scraper(lambda: directory).collect()
    return {sample.name: sample.value for family in families for sample in family.samples if "le" not in sample.labels}


def damage(path: Path, data: bytes, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_lane_of_no_bytes_is_left_out(directory: Path) -> None:
    os.truncate(directory / "lane-0001", 0)
    assert totals(directory) == {"jobs_total": 3, "seconds_count": 1, "seconds_sum": 0.3}


def test_lane_cut_in_its_header_is_left_out(directory: Path) -> None:
    os.truncate(directory / "lane-0001", 20)
    assert totals(directory)["jobs_total"] == 3


def test_lane_cut_in_a_cell_is_zero_from_there(directory: Path) -> None:
    os.truncate(directory / "lane-0000", HEADER_SIZE + 8 + 4)
    assert totals(directory) == {"jobs_total": 7, "seconds_count": 0, "seconds_sum": 0}


def test_lane_with_a_foreign_header_is_left_out(directory: Path) -> None:
    damage(directory / "lane-0001", os.urandom(64))
    assert totals(directory)["jobs_total"] == 3


def test_lane_of_another_index_is_left_out(directory: Path) -> None:
    damage(directory / "lane-0001", struct.pack("=Q", 12345), HEADER.size - 40)
    assert totals(directory)["jobs_total"] == 3


def test_zeroed_page_costs_its_values(directory: Path) -> None:
    damage(directory / "lane-0000", bytes(4096), HEADER_SIZE)
    assert totals(directory)["jobs_total"] == 4


def test_stray_files_are_ignored(directory: Path) -> None:
    before = totals(directory)
    for name in ("lane-", "lane-x", "gauge_all.db", "exemplars-x", "archive.old"):
        (directory / name).write_bytes(b"stray")
    (directory / "lane-0007").mkdir()
    (directory / "lane-0008").symlink_to(directory / "lane-0000")
    assert totals(directory) == before
    assert Scraper(lambda: directory).exemplars() == {}


def test_damaged_lane_is_replaced_and_not_cut(run_apart: Callable[[str], str], directory: Path) -> None:
    held = os.open(directory / "lane-0001", os.O_RDONLY)
    damage(directory / "lane-0001", os.urandom(64))
    run_apart("""
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("a").inc()
        in_child(lambda: jobs.labels("a").inc())
    """)
    assert totals(directory)["jobs_total"] == 5  # 3 in the first lane, two new ones
    assert os.fstat(held).st_nlink == 0
    assert os.fstat(held).st_size > 0
    os.close(held)


def test_torn_tail_of_the_index_is_cut_by_the_next_writer(run_apart: Callable[[str], str], directory: Path) -> None:
    before = totals(directory)
    size = (directory / "index").stat().st_size
    with (directory / "index").open("ab") as file:
        file.write(b'12345678 ["series",')
    assert totals(directory) == before
    run_apart("""
        adoption.install(store)
        Counter("more", "m").inc()
    """)
    assert totals(directory) == {**before, "more_total": 1}
    assert b'12345678 ["series",' not in (directory / "index").read_bytes()[size:]


def test_damaged_line_of_the_index_costs_what_it_defined(run_apart: Callable[[str], str], directory: Path) -> None:
    lines = (directory / "index").read_bytes().splitlines(keepends=True)
    [number] = [i for i, line in enumerate(lines) if b'"counter"' in line]
    damage(directory / "index", b"#", sum(map(len, lines[:number])) + 20)
    assert totals(directory) == {"seconds_count": 1, "seconds_sum": 0.3}
    assert Scraper(lambda: directory).read().damaged == 1
    run_apart("""
        adoption.install(store)
        Counter("jobs", "j", ["kind"]).labels("a").inc()
        Histogram("seconds", "s").observe(0.2)
    """)
    assert totals(directory) == {"seconds_count": 2, "seconds_sum": 0.5, "jobs_total": 1}


@pytest.mark.parametrize(
    "garbage", [b"\n", b"\0" * 200 + b"\n", b"not a line\n", b"zzzzzzzz []\n", b"\xff" * 40 + b"\n"]
)
def test_garbage_lines_in_the_index_are_skipped(directory: Path, garbage: bytes) -> None:
    before = totals(directory)
    with (directory / "index").open("ab") as file:
        file.write(garbage)
    assert totals(directory) == before


def test_index_of_garbage_is_an_empty_page(directory: Path) -> None:
    (directory / "index").write_bytes(os.urandom(10_000))
    assert totals(directory) == {}


def test_missing_index_is_an_empty_page(directory: Path) -> None:
    (directory / "index").unlink()
    assert totals(directory) == {}


@pytest.mark.parametrize("name", ["archive", "removed", "exemplars-0000"])
def test_garbage_in_the_side_files_fails_no_scrape(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"\0\0\0" * 7)
    assert totals(directory)["jobs_total"] == 7
    assert Scraper(lambda: directory).exemplars() == {}


def test_scraper_goes_on_when_files_change_under_it(directory: Path) -> None:
    scraper = Scraper(lambda: directory)
    assert "jobs_total" in scraper.text()
    (directory / "index").rename(directory / "index.old")
    assert scraper.text() == ""
    (directory / "index.old").rename(directory / "index")
    assert "jobs_total" in scraper.text()
    os.truncate(directory / "index", 0)
    assert scraper.text() == ""


def test_lane_cut_under_its_owner_is_left_for_a_new_one_by_the_clock(run_apart: Callable[[str], str]) -> None:
    run_apart(
        STORE
        + """
    os.truncate(directory / "lane-0000", 0)
    store.tend()
    jobs.labels("a").inc()  # would be a SIGBUS
    assert value("jobs_total", kind="a") == 5
    """
    )


def test_file_size_limit_kills_no_worker(run_apart: Callable[[str], str]) -> None:
    """A full disk, as far as a test without privileges can make one: reserving blocks fails with EFBIG."""
    run_apart("""
        import resource
        adoption.install(store)
        jobs = Counter("jobs", "j", ["kind"])
        jobs.labels("0").inc()
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
        for n in range(3000):
            jobs.labels(str(n)).inc()
        in_child(lambda: [jobs.labels(str(n)).inc() for n in range(3000)])
        assert store.stats()["private"] > 0
        assert scraper.lanes()[0].unstored == store.stats()["private"]
        shown = sum(samples().values())
        assert 0 < shown < 6001
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.tend()
        assert store.stats()["private"] == 0
        assert sum(n for (name, labels), n in samples().items()) >= 3001
    """)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_full_disk_kills_no_worker(run_apart: Callable[[str], str], tmp_path: Path) -> None:
    mount = tmp_path / "metrics"
    mount.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k,mode=0700 tmpfs {mount} 2>/dev/null") != 0:
        pytest.skip("no file system can be mounted here")
    try:
        run_apart("""
            adoption.install(store)
            seconds = Histogram("seconds", "s", ["kind"])
            gauge = Gauge("depth", "d", ["kind"])
            for n in range(1000):
                seconds.labels(str(n)).observe(0.3)
                gauge.labels(str(n)).set(n)
            assert store.stats()["private"] > 0
            def work():
                for n in range(1000):
                    seconds.labels(str(n)).observe(0.3)
            in_child(work)
            in_child(work)
            children = [Child(work) for _ in range(3)]
            for child in children: child.step()
            for child in children: child.end()
            store.tend()
            seconds.labels("0").observe(0.3)
            assert value("seconds_count", kind="0") >= 2
            store.exemplars.keep(0, adoption.values.Exemplar({"a": "b"}, 1.0))
        """)
    finally:
        os.system(f"umount {mount}")


def test_lane_is_taken_once(tmp_path: Path) -> None:
    first = Lane.take(tmp_path, HEADER_SIZE + 800, 1, 100)
    second = Lane.take(tmp_path, HEADER_SIZE + 800, 1, 100)
    assert (first.number, second.number) == (0, 1)
    first.release()
    third = Lane.take(tmp_path, HEADER_SIZE + 800, 1, 100)
    assert third.number == 0
    second.release()
    third.release()
    assert not {first, second, third}.intersection(owned.values())


def test_short_lane_is_read_as_zeros(tmp_path: Path) -> None:
    (tmp_path / "lane-0000").write_bytes(HEADER.pack(MAGIC, 7, 8.0, 1, b"web").ljust(HEADER_SIZE, b"\0"))
    [(state, column)] = read_all(tmp_path, 1, 3)
    assert (state.pid, state.started, state.role, state.alive) == (7, 8.0, "web", False)
    assert column == array.array("d", [0, 0, 0])
