from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("django_obs", "tests", "docs", "example_project", "benchmarks")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="tests run without the source tree")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[PurePosixPath]:
    """Build a source distribution and return the paths in it."""
    sdist = pytest.importorskip("hatchling.builders.sdist")
    (archive,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    with tarfile.open(archive) as file:
        return {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in file.getnames()}


def test_sdist_holds_every_module_with_its_tests_and_pages(packed: set[PurePosixPath]) -> None:
    sources = {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for room in ROOMS
        for suffix in ("py", "md", "typed", "html")
        for path in (ROOT / room).rglob(f"*.{suffix}")
    }

    assert len(sources) > 100
    assert sources - packed == set()


def test_sdist_holds_what_says_how_to_build_and_use_it(packed: set[PurePosixPath]) -> None:
    wanted = "PKG-INFO README.md LICENSE CHANGELOG.md CONTRIBUTING.md pyproject.toml tox.ini manage.py mkdocs.yml"

    assert set(map(PurePosixPath, wanted.split())) - packed == set()


def test_sdist_holds_nothing_that_was_made_here(packed: set[PurePosixPath]) -> None:
    made = {".venv", ".tox", ".git", "__pycache__", ".pytest_cache", "dist", "build"}

    assert [path for path in packed if made & set(path.parts) or path.suffix in (".pyc", ".sqlite3", ".log")] == []
