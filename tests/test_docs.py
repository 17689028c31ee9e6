from __future__ import annotations

import configparser
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest
from django.core.management import BaseCommand, load_command_class
from django.test import Client
from prometheus_client import CollectorRegistry

import django_obs
from django_obs import checks, conf, runtime
from django_obs.logs.entry import ACCESS_FIELDS, RESERVED
from django_obs.logs.filters import SCOPE_FIELDS
from django_obs.metrics import jobs, process
from django_obs.metrics.catalogue import DECLARATIONS, Declaration
from django_obs.metrics.scraper import Scraper
from django_obs.server import address, assembly
from django_obs.server.page import MetricsPage
from django_obs.testing import capture_logs, capture_spans
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


def test_every_metric_in_the_tables_is_declared() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \w+ \|", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)

    assert sorted(rows) == sorted(declaration.name for declaration in DECLARATIONS)


def exercised() -> CollectorRegistry:
    """Return a registry with every metric of tasks and commands in it."""
    registry = CollectorRegistry()
    commands, celery = jobs.CommandInstruments(registry), jobs.CeleryInstruments(registry)
    tasks = jobs.DjangoTaskInstruments(registry)
    commands.command_finished("bill", 1.0, None)
    for count in (celery.sent, celery.received, celery.revoked):
        count("ship", "default")
    celery.worker_up(True)
    celery.started("ship", "default", 1.0)
    for state in ("SUCCESS", "FAILURE", "RETRY", "REJECTED"):
        celery.finished("ship", "default", state, 1.0, "ValueError")
    tasks.sent("ship", "default", "default")
    tasks.started("ship", "default", "default", 1.0)
    for status in ("SUCCESSFUL", "FAILED"):
        tasks.finished("ship", "default", "default", status, 1.0)
    return registry


def test_metrics_of_tasks_and_commands_are_documented_with_labels() -> None:
    recorded = {
        collector._name + ("_total" if collector._type == "counter" else ""): set(collector._labelnames)
        for collector in exercised()._collector_to_names
    }

    text = (DOCS / "tasks.md").read_text()
    rows = re.findall(r"^\| (`(?:celery|django)_[^|]+) \| ([^|\n]+) \|$", text, flags=re.MULTILINE)
    documented = {
        name: set(re.findall(r"`(\w+)`", labels.partition(":")[0] if "status" in labels else labels))
        for names, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }

    assert documented == recorded


def test_what_runmetrics_says_of_itself_and_of_processes_is_documented(tmp_path: Path) -> None:
    class NoCollectors:
        failures = timeouts = 0

        def collect(self) -> list[typing.Any]:
            return []

    page = MetricsPage(Scraper(lambda: tmp_path), typing.cast("typing.Any", NoCollectors()))
    own = {f"{family.name}_total" if family.type == "counter" else family.name for family in page._read().collected}
    of_processes = {name + ("_total" if kind == "counter" else "") for kind, name, _, _ in process.FAMILIES}

    text = (DOCS / "metrics.md").read_text()
    told = re.findall(r"^Beside these, `runmetrics` tells of itself: (.+)$", text, flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", told[0])) == own
    assert {name for name in re.findall(r"`(process_\w+)`", text) if name != "process_"} == of_processes


# -- Lines ------------------------------------------------------------------------------------------------------------


def table(page: str, heading: str, row: str = "field") -> list[str]:
    """Return the names in the first column of the table under a heading."""
    text = (DOCS / page).read_text().partition(f"\n{heading}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| ([^|]+) \|", text, flags=re.MULTILINE)
    start = rows.index(row)
    return [name for each in rows[start:] for name in re.findall(r"`([^`]+)`", each)]


def test_keys_of_a_line_are_documented() -> None:
    assert set(table("logs.md", "## A line", "key")) == RESERVED


def test_fields_of_the_access_line_are_documented() -> None:
    documented = table("logs.md", "## The access line")

    assert sorted(documented) == sorted(ACCESS_FIELDS)


@pytest.mark.django_db
def test_lines_of_requests_have_documented_fields_alone() -> None:
    documented = {*table("logs.md", "## A line", "key"), *table("logs.md", "## The access line")}
    client = Client(raise_request_exception=False, headers={"x-request-start": "t=1700000000.0"})

    with capture_logs() as lines:
        for path in ("/queries/", "/as-user/", "/fail/", "/nowhere/"):
            client.get(path)

    emitted = {name for line in lines if line["logger"] == "django_obs.access" for name in line}
    assert {"route", "db_queries", "user_id", "exception"} < emitted
    assert emitted <= documented


def test_fields_of_a_task_are_documented() -> None:
    celery = pytest.importorskip("celery")
    app = celery.Celery("docs", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task(name="docs.ship")
    def ship() -> None:
        raise ValueError("no stock")

    with capture_logs() as lines:
        ship.delay()

    (line,) = [line for line in lines if line["logger"] == "django_obs.access"]
    documented = set(table("tasks.md", "## The line of a task"))
    assert {"task", "outcome", "error"} < set(line)
    assert set(line) - RESERVED <= documented
    # What an eager run of Celery has not: it waits in no queue, and Django's tasks have a backend.
    assert documented - set(line) == {"queue_ms", "backend"}


def test_fields_of_a_filter_are_documented() -> None:
    (told,) = re.findall(r"^- `field` is (.+)$", (DOCS / "logs.md").read_text(), flags=re.MULTILINE)

    assert set(re.findall(r"`([a-z_.]+)`", told)) == set(SCOPE_FIELDS)


# -- Spans ------------------------------------------------------------------------------------------------------------

ATTRIBUTE = re.compile(
    r"""["`]((?:celery|db|django|django_obs|error|exception|http|messaging|network|process|server|service|telemetry
        |url|user|user_agent|client)(?:\.[a-z_]+)+)["`]""",
    re.VERBOSE,
)
# What looks like one: loggers, modules, fields of a filter, old conventions that a receiver of any sender's knows.
NO_ATTRIBUTES = re.compile(r"django\.(db|tasks|template|request|server|core\..*|utils\..*|channels\..*|tasks\..*)$")


def attributes_in_code() -> set[str]:
    package = Path(django_obs.__file__).parent
    files = [*package.glob("traces/*.py"), *package.glob("instrumentation/*.py")]
    found = {name for file in files for name in ATTRIBUTE.findall(file.read_text())}
    return {name for name in found if not NO_ATTRIBUTES.match(name)} - {"django_obs.access", "celery.signals"}


def attributes_in_docs() -> set[str]:
    text = (DOCS / "traces.md").read_text().partition("\n## Attributes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    return {name for row in rows for cell in row for name in ATTRIBUTE.findall(cell)} - {"django.tasks", "oracle.db"}


def test_attributes_of_spans_are_those_that_are_documented() -> None:
    assert attributes_in_code() == attributes_in_docs()


@pytest.mark.django_db
def test_spans_of_requests_have_documented_attributes_alone() -> None:
    client = Client(raise_request_exception=False, headers={"user-agent": "docs", "host": "localhost:8000"})

    with capture_logs(), capture_spans() as spans:
        for path in ("/queries/?page=2", "/as-user/", "/fail/", "/nowhere/"):
            client.get(path)

    emitted = {name for span in spans for name in span.attributes}
    emitted |= {name for span in spans for _, attributes in span.events for name in attributes}
    assert {"http.route", "user.id", "db.query.text", "django_obs.cache.hit", "exception.type"} < emitted
    assert emitted <= attributes_in_docs()


# -- Commands ---------------------------------------------------------------------------------------------------------

# Every command of Django has these.
COMMON = {
    option for action in BaseCommand().create_parser("manage.py", "any")._actions for option in action.option_strings
}


def options(parser: typing.Any) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings} - COMMON


def subcommands() -> dict[str, typing.Any]:
    parser = load_command_class("django_obs", "obs").create_parser("manage.py", "obs")
    return next(dict(action.choices) for action in parser._actions if action.dest == "subcommand")


def test_options_of_runmetrics_are_documented() -> None:
    parser = load_command_class("django_obs", "runmetrics").create_parser("manage.py", "runmetrics")

    documented = {name for name in table("commands.md", "## runmetrics", "option") if name.startswith("--")}

    assert documented == options(parser)


@pytest.mark.parametrize("name", list(subcommands()))
def test_options_of_subcommand_are_documented_on_one_page(name: str) -> None:
    wanted = options(subcommands()[name])
    pages = {page.name: page.read_text() for page in DOCS.glob("*.md")}

    told = {page: text for page, text in pages.items() if f"obs {name}" in text}

    assert told, f"no page shows `obs {name}`"
    assert any(all(re.search(rf"(?<![\w-]){option}\b", text) for option in wanted) for text in told.values()), (
        f"none of {', '.join(told)} shows all of {', '.join(sorted(wanted))}"
    )


# -- Inside ------------------------------------------------------------------------------------------------------------


def test_threads_are_documented() -> None:
    sources = [path.read_text() for path in Path(django_obs.__file__).parent.rglob("*.py")]
    started = {name for text in sources for name in re.findall(r'(?:Worker\(|name=)"(django_obs-[\w-]+)"', text)}

    assert {name for name in table("inside.md", "## Threads", "thread") if name.startswith("django_obs-")} == started


def test_files_of_the_runtime_directory_are_documented() -> None:
    files = [name for name in table("inside.md", "## Files", "file") if " " not in name]

    assert files == [runtime.SIGNPOST, runtime.CONTROL, address.FILE, f"{assembly.STORE}/"]


def test_pictures_are_read_without_eyes_and_without_network() -> None:
    pictures = list((DOCS / "images").glob("*.svg"))

    assert pictures
    for picture in pictures:
        text = picture.read_text()
        assert "<title" in text
        assert "<desc" in text
        assert not re.search(r"(?:href|src)=|<script|@import|url\((?!#)", text), picture.name


# -- Blocks of code ---------------------------------------------------------------------------------------------------


def blocks(language: str, containing: str = "") -> list[typing.Any]:
    """Return each fenced block of the site and the README in a language, as a parameter that names page and line."""
    found_blocks = []
    for page in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"] if DOCS.is_dir() else []:
        text = page.read_text()
        for found in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            if re.search(containing, found[2], flags=re.MULTILINE):
                found_blocks.append(pytest.param(textwrap.dedent(found[2]), id=f"{page.stem}-{line}"))
    return found_blocks


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_block_is_valid(block: str) -> None:
    yaml = pytest.importorskip("yaml")

    documents = list(yaml.safe_load_all(block))

    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize("block", blocks("yaml", containing="^exporters:"))
def test_components_of_a_collector_are_declared(block: str) -> None:
    content = pytest.importorskip("yaml").safe_load(block)

    assert content["service"]["pipelines"]
    for pipeline in content["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(content[kind])


@pytest.mark.parametrize("block", blocks("yaml", containing="^scrape_configs:"))
def test_prometheus_block_is_valid(block: str, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("service promtool: not installed")
    # The files that it names are not here.
    file = tmp_path / "prometheus.yml"
    file.write_text(block)

    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("python"))
def test_python_block_compiles(block: str) -> None:
    compile(block, "block", "exec")


@pytest.mark.parametrize("block", blocks("json"))
def test_json_block_is_valid(block: str) -> None:
    for line in block.splitlines():
        json.loads(line)


@pytest.mark.parametrize("block", blocks("ini"))
def test_unit_block_is_valid(block: str) -> None:
    for unit in re.split(r"^# /.*$", block, flags=re.MULTILINE):
        # A unit may set a name more than once.
        parsed = configparser.RawConfigParser(strict=False, delimiters=("=",))
        parsed.read_string(unit)
        assert set(parsed.sections()) <= {"Unit", "Service", "Install", "uwsgi"}


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_of_ours_in_the_block_are_understood(block: str) -> None:
    for name, arguments in re.findall(r"manage\.py (obs|runmetrics)([^#|&;>\n]*)", block):
        parser = load_command_class("django_obs", name).create_parser("manage.py", name)
        # Ends the process where it does not understand, which is a failure here.
        parser.parse_args(shlex.split(arguments))


def test_findings_of_the_doctor_are_documented() -> None:
    source = "".join(path.read_text() for path in (ROOT / "django_obs" / "doctor").glob("*.py"))
    made = set(re.findall(r'"((?:runtime|project|line|port)\.[a-z_]+)"', source))
    made |= {
        f"{part}.{link}" for part in ("collector", "log_collector") for link in re.findall(r"{part}\.([a-z]+)", source)
    }
    made |= {f"runtime.{name}" for name in re.findall(r'"django_obs_((?:log_records|spans)_\w+)"', source)}

    documented = set(
        re.findall(
            r"`((?:runtime|project|line|port|collector|log_collector)\.[a-z_]+)`", (DOCS / "doctor.md").read_text()
        )
    )

    assert documented == made


def test_every_page_is_in_the_navigation() -> None:
    # By hand, because a YAML parser is one of the optional dependencies.
    listed = re.findall(r"^\s+- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)

    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_changelog_has_the_version() -> None:
    versions = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert django_obs.__version__ in versions
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == django_obs.__version__


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "example_project/README.md"])
def test_links_outside_of_the_site_lead_somewhere(page: str) -> None:
    # Those within the site are mkdocs's to check.
    file = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text())

    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []


def test_readme_commands_are_one_line_each() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("demo", "tests"):
        block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", readme, flags=re.DOTALL)
        assert block is not None, name
        assert block[1].strip().count("\n") == 0, name
