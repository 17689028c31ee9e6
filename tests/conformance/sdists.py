"""Fetches the source distributions whose tests are run against us, in the versions that are installed.

    python -m tests.conformance.sdists DIRECTORY

lays them out as checkouts of the projects are. django-prometheus is not among them: its distribution leaves out the
project that its tests run in.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

PLACES = {
    "opentelemetry-instrumentation-django": "instrumentation/opentelemetry-instrumentation-django",
    "opentelemetry-sdk": "opentelemetry-sdk",
    "prometheus-client": "prometheus-client",
    "python-json-logger": "python-json-logger",
}


def fetch(directory: Path) -> None:
    archives = directory / "archives"
    pins = [f"{name}=={version(name)}" for name in PLACES]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
            *("--no-binary", ",".join(PLACES), "--dest", str(archives), *pins),
        ],
        check=True,
    )
    for name, place in PLACES.items():
        (archive,) = archives.glob(f"{name.replace('-', '_')}-*.tar.gz")
        target = directory / place
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            packed.extractall(directory, filter="data")
        (directory / archive.name.removesuffix(".tar.gz")).rename(target)
        if not (target / "tests").is_dir():
            raise SystemExit(f"{archive.name} has no tests; name a checkout in the environment")
        print(f"{archive.name}: {sum(1 for _ in (target / 'tests').rglob('test_*.py'))} files of tests")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
