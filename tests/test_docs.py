from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

import django_obs
from django_obs import checks, conf
from django_obs.metrics.catalogue import DECLARATIONS, Declaration
from tests.dashboards.mixin import FACTS, TARGET

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="tests run without the source tree")


def sections(page: str) -> dict[str, str]:
    """Return the text under each heading of the third level."""
    text = (DOCS / page).read_text()
    parts = re.split(r"^(?=#{1,3} )", text, flags=re.MULTILINE)
    return {
        heading.removeprefix("### ").strip("`"): body
        for heading, _, body in (part.partition("\n") for part in parts)
        if heading.startswith("### ")
    }


def written(value: object) -> str:
    """Write a default as a settings file would."""
    match value:
        case tuple():
            return f"[{', '.join(map(repr, value))}]"
        case Mapping():
            return "{}"
        case _:
            return repr(value)


def defaults(section: type = conf.Settings, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        here = (*path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            found |= defaults(hints[field.name], here)
        else:
            made = field.default_factory is not dataclasses.MISSING
            found[here] = field.default_factory() if made else field.default
    return found


def test_settings_are_documented_in_their_order() -> None:
    assert list(sections("settings.md")) == [".".join(path).upper() for path in conf.paths()]


@pytest.mark.parametrize("path", list(conf.paths()), ids=".".join)
def test_setting_tells_default_and_variable(path: tuple[str, ...]) -> None:
    text = sections("settings.md")[".".join(path).upper()]

    assert f"- Default: `{written(defaults()[path])}`\n" in text
    assert f"- Variable: `{conf.variable_of(path)}`\n" in text


def test_standard_variables_are_documented_where_they_are_read() -> None:
    source = "".join(path.read_text() for path in Path(conf.__file__).parent.glob("*.py"))
    read = set(re.findall(r'"(OTEL_[A-Z_]+)"', source))

    documented = set(re.findall(r"`(OTEL_[A-Z_]+)`", (DOCS / "settings.md").read_text()))

    assert read - documented == set()


def test_checks_are_documented_in_their_order() -> None:
    source = Path(checks.__file__).read_text()
    read = re.findall(r'"(?:django_obs\.)?([EW]\d{3})"', source)

    assert list(sections("checks.md")) == [f"django_obs.{number}" for number in sorted(read)]
    assert all(text.strip() for text in sections("checks.md").values())


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=lambda declaration: declaration.name)
def test_metric_is_documented_with_kind_and_labels(declaration: Declaration) -> None:
    labels = ", ".join(f"`{label}`" for label in declaration.labels)

    assert f"| `{declaration.name}` | {declaration.kind} | {labels} |\n" in (DOCS / "metrics.md").read_text()


def test_what_published_dashboards_need_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "dashboards.md").read_text(), flags=re.MULTILINE)

    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == {
        name: labels - TARGET for name, labels in FACTS.items()
    }


def test_every_page_is_in_the_navigation() -> None:
    # By hand, because a YAML parser is one of the optional dependencies.
    listed = re.findall(r"^\s+- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)

    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_changelog_has_the_version() -> None:
    versions = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert django_obs.__version__ in versions
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == django_obs.__version__


def test_readme_commands_are_one_line_each() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("demo", "tests"):
        block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", readme, flags=re.DOTALL)
        assert block is not None, name
        assert block[1].strip().count("\n") == 0, name
