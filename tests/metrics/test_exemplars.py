from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.samples import Exemplar

from django_obs.metrics.exemplars import RECORD_SIZE, ExemplarFile, decode, encode, read_newest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("labels", [{}, {"trace_id": "4bf9"}, {"trace_id": "4bf9", "span_id": ""}, {"name": "é" * 60}])
def test_exemplar_is_read_as_it_was_written(labels: dict[str, str]) -> None:
    record = encode(7, Exemplar(labels, 0.3, 1700000000.123))
    assert record is not None
    assert len(record) == RECORD_SIZE
    assert decode(record) == Exemplar(labels, 0.3, 1700000000.123)


def test_torn_record_is_none() -> None:
    record = encode(7, Exemplar({"trace_id": "4bf9"}, 0.3, 1.0))
    assert record is not None
    assert decode(record[:100] + b"?" + record[101:]) is None


def test_labels_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    file = ExemplarFile()
    file.open(tmp_path / "exemplars-0000")
    file.keep(1, Exemplar({"x": "\N{SNOWMAN}" * 120}, 1.0, 1.0))
    assert file.lost == 1
    file.close()


def test_newest_of_all_files_wins(tmp_path: Path) -> None:
    paths = [tmp_path / "exemplars-0000", tmp_path / "exemplars-0001"]
    for path, times in zip(paths, ((1.0, 5.0), (4.0, 2.0)), strict=True):
        file = ExemplarFile()
        file.open(path)
        for slot, at in enumerate(times):
            file.keep(slot, Exemplar({"at": str(at)}, 1.0, at))
        file.flush()
        file.close()
    assert {slot: exemplar.timestamp for slot, exemplar in read_newest(paths).items()} == {0: 4.0, 1: 5.0}


def test_next_owner_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "exemplars-0000"
    for slots in ((3, 4), (4, 5)):
        file = ExemplarFile()
        file.open(path)
        for slot in slots:
            file.keep(slot, Exemplar({"slots": str(slots)}, 1.0, 1.0))
        file.flush()
        file.close()
    assert path.stat().st_size == 3 * RECORD_SIZE
    assert sorted(read_newest([path])) == [3, 4, 5]


def test_exemplars_are_written_once_a_second(tmp_path: Path) -> None:
    file = ExemplarFile()
    file.open(tmp_path / "exemplars-0000")
    for n in range(100):
        file.keep(0, Exemplar({"n": str(n)}, 1.0, float(n)))
    assert read_newest([tmp_path / "exemplars-0000"])[0].labels == {"n": "0"}
    file.flush()
    assert read_newest([tmp_path / "exemplars-0000"])[0].labels == {"n": "99"}
    file.close()


def test_file_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    file = ExemplarFile()
    file.open(tmp_path / "missing" / "exemplars-0000")
    file.keep(0, Exemplar({}, 1.0, 1.0))
    assert file.lost == 1
