from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from example_project.demo.collector import Collector
from example_project.demo.processes import StartError
from example_project.demo.receiver import Receiver

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here as slow: each of these tests starts servers."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Backend:
    """A real collector and what it passed on."""

    url: str
    grpc_url: str
    receiver: Receiver


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        try:
            process = Collector(tmp_path_factory.mktemp("collector"), forward_to=receiver.url)
        except StartError as error:
            pytest.skip(f"service rotel: {error}")
        stack.enter_context(process)
        yield Backend(process.url, process.grpc_url, receiver)
