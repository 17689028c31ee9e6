from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"


def exceptions(file: str) -> list[str]:
    """Read the names without importing the plugin, which puts things in other things' places."""
    tree = ast.parse((HERE / file).read_text())
    found: list[ast.expr | None] = []
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys)) if name.startswith("EXCEPTIONS"):
                found += keys
            case ast.Assign(targets=[ast.Name(id="EXCEPTIONS" | "INTERNALS")], value=ast.Tuple(elts=elements)):
                found += elements
    return [str(name.value).rpartition("::")[2] for name in found if isinstance(name, ast.Constant)]


@pytest.mark.skipif(not DOCS.is_dir(), reason="tests run without the source tree")
@pytest.mark.parametrize(
    ("file", "page"),
    [
        ("sdk_plugin.py", "traces.md"),
        ("django_plugin.py", "traces.md"),
        ("client_plugin.py", "metrics.md"),
        ("test_django_prometheus.py", "metrics.md"),
    ],
)
def test_every_test_that_is_left_out_is_documented(file: str, page: str) -> None:
    text = (DOCS / page).read_text()
    names = exceptions(file)
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_formatter_has_no_exceptions() -> None:
    assert exceptions("json_logger_plugin.py") == []
