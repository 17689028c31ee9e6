from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.is_file(), reason="tests run without the source tree")
def test_lowest_versions_are_those_that_the_project_allows() -> None:
    required = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    pinned = Path(__file__).with_name("lowest.txt").read_text().splitlines()

    assert pinned[1 : len(required) + 1] == [requirement.replace(">=", "==") for requirement in required]
