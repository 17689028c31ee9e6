"""A short round of the soak: responses as bare Django's, nothing twice, and what is lost is counted.

``python -m tests.soak`` has all faults, for as long as one likes.
"""

from __future__ import annotations

import sys

import pytest

from tests.soak.faults import FAULTS
from tests.soak.ledger import Expected
from tests.soak.phase import Phase
from tests.soak.twins import make_database

USUAL = {
    "workers killed at random",
    "a user's handler, hooks, sampler, processor and collector raise",
    "ASGI connections cancelled",
    "one after the other",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return make_database(tmp_path_factory.mktemp("soak"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory, database) -> Expected:
    """What requests make where nothing goes wrong, which is a phase as well."""
    work = tmp_path_factory.mktemp("calm") / "phase"
    result, learnt = Phase(FAULTS[0], 1.0, work, database).run(None)
    assert not result.problems(), result.said
    return learnt


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS if fault.name in USUAL])
def test_fault_changes_no_response_and_loses_nothing_uncounted(tmp_path, database, expected, fault):
    result, _ = Phase(fault, 5.0 if fault is FAULTS[-1] else 2.0, tmp_path / "phase", database, connections=200).run(
        expected
    )

    assert not result.problems(), "\n".join([*result.problems(), result.said])
