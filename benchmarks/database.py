"""The benchmark's data, on SQLite or PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

ROOT = Path(__file__).resolve().parent.parent
FILL = """
import datetime, decimal, django
django.setup()
from django.core.management import call_command
call_command("migrate", run_syncdb=True, verbosity=0)
from benchmarks.project.models import Author, Book
Author.objects.bulk_create(Author(name=f"Author {n}", country=f"Country {n % 7}") for n in range(1, 31))
authors = list(Author.objects.order_by("id"))
day = datetime.date(2001, 1, 1)
Book.objects.bulk_create(
    Book(author=authors[n % 30], title=f"The rather long title of the book with number {n}", pages=100 + n,
         price=decimal.Decimal(n) / 4, published=day + datetime.timedelta(days=n))
    for n in range(200)
)
"""


@contextmanager
def database(kind: str, directory: Path):
    """Make a filled database of a kind, sqlite or postgresql, and yield its URL; drop it at the end.

    PostgreSQL is the server of ``BENCH_POSTGRES_URL``, by default the local one; a database is made there and dropped.
    """
    if kind == "sqlite":
        url = f"sqlite:///{directory / 'bench.sqlite3'}"
        fill(url)
        yield url
        return
    import psycopg

    server = os.environ.get("BENCH_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
    name = f"bench_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        fill(url)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def fill(url: str) -> None:
    environ = os.environ | {
        "BENCH_DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "benchmarks.stacks.bare",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-c", FILL], env=environ, check=True)
