from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import example_project

ROOT = Path(example_project.__file__).parent.parent
SCRIPT = """
import sys
import django
django.setup()
def show(what, status):
    sys.stdout.write(f"{what} {status}\\n")  # at once: print() leaves room for a log line after each word
from django.core.management import call_command
from django.test import Client
call_command("makemigrations", check=True, dry_run=True, verbosity=0)
call_command("migrate", verbosity=0)
client = Client(raise_request_exception=False, headers={"host": "localhost"})
for path in ("/", "/products/leek/", "/products/caviar/", "/api/products/", "/stock/", "/broken/", "/healthz"):
    show(path, client.get(path).status_code)
for quantity in (2, 0, 10**6):
    order = {"product": "leek", "quantity": quantity}
    show(quantity, client.post("/api/orders/", order, content_type="application/json").status_code)
"""
ANSWERS = """
/ 200
/products/leek/ 200
/products/caviar/ 404
/api/products/ 200
/stock/ 200
/broken/ 500
/healthz 200
2 201
0 400
1000000 409
"""


@pytest.fixture
def postgresql_url() -> Iterator[str]:
    psycopg = pytest.importorskip("psycopg")
    url = os.environ.get("POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432/test")
    try:
        connection = psycopg.connect(url, connect_timeout=20, autocommit=True)
    except psycopg.OperationalError as error:
        pytest.skip(f"service postgresql: {error}")
    name = f"shop_{os.getpid()}"
    with contextlib.closing(connection):
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
        yield f"{url.rpartition('/')[0]}/{name}"
        connection.execute(f"DROP DATABASE {name}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.sqlite3'}"
    return str(request.getfixturevalue("postgresql_url"))


def test_shop_answers(database_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DATABASE_URL": database_url,
            "DJANGO_OBS_RUNTIME_DIR": str(tmp_path / "run"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    answers = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert answers == ANSWERS.split("\n")[1:-1], done.stderr
