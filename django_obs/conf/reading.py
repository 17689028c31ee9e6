"""The settings as their sources give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from . import otel
from .problem import Problem, Unusable
from .table import ROOT, Path, Settings, TraceSettings, default_of, hints_of, paths, place_of, variable_of
from .values import from_object, limited


class Reading(NamedTuple):
    """What the sources gave together."""

    settings: Settings
    problems: tuple[Problem, ...]
    origins: Mapping[Path, str]
    """Where each value stands that is not a default."""
    logs_collector: otel.Collector
    """Where log records are sent when ``LOGS.OTLP`` asks for it."""


class Given(NamedTuple):
    """What one source gives for one setting."""

    place: str
    value: object
    read: Callable[[Any], object]
    """Returns the value as the type it is called with; raises `Unusable`."""


def read_settings(raw: object, environ: Mapping[str, str], *, service_name: str = "unknown_service") -> Reading:
    """Read the tree from `raw`, the project's ``DJANGO_OBS``, and `environ`; never raise."""
    return Reader(environ).read(raw, service_name)


class Reader:
    """One reading of all sources."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []
        self.origins: dict[Path, str] = {}

    def read(self, raw: object, service_name: str) -> Reading:
        """Read the whole tree."""
        root = self.section(Settings, (), raw)
        root["service_name"] = root["service_name"] or service_name
        traces: TraceSettings = root["traces"]
        endpoint = self.full_endpoint(("traces", "endpoint"), traces.endpoint, traces.protocol, "traces")
        root["traces"] = replace(traces, endpoint=endpoint)
        found = list(self.problems)
        collector = self.logs_collector(raw)
        if not root["logs"].otlp:
            self.problems = found  # Nothing goes there.
        self.problems += unknown_variables(self.environ)
        return Reading(Settings(**root), tuple(self.problems), self.origins, collector)

    def section(self, section: type, path: Path, raw: object) -> dict[str, Any]:
        """Return the section's values by the names of their fields."""
        if not isinstance(raw, Mapping):
            self.problems.append(Problem(kind="type", place=place_of(path), value=raw, way_out="must be a dict"))
            raw = {}
        hints = hints_of(section)
        keys = {each.name.upper(): each for each in fields(section)}
        self.problems += (unknown_key(path, key, keys) for key in raw if key not in keys)
        values: dict[str, Any] = {}
        for key, each in keys.items():
            here, hint = (*path, each.name), hints[each.name]
            if isinstance(hint, type) and is_dataclass(hint):
                values[each.name] = hint(**self.section(hint, here, raw.get(key, {})))
            else:
                values[each.name] = self.value(self.sources(here, raw), hint, each.metadata, here, default_of(each))
        return values

    def value(self, sources: Iterable[Given], hint: Any, limits: Mapping[str, Any], path: Path, default: Any) -> Any:
        """Return the value of the first source that gives a usable one."""
        for given in sources:
            try:
                value = given.read(hint)
                if value is otel.NOT_GIVEN:
                    continue
                value = limited(value, limits)
            except Unusable as unusable:
                self.refuse(given, unusable)
            else:
                self.origins[path] = given.place
                return value
        return default

    def refuse(self, given: Given, unusable: Unusable) -> None:
        """Remember the problem; one variable may speak of several settings."""
        kind = "otel" if given.place.startswith("OTEL_") else unusable.kind
        problem = Problem(kind=kind, place=given.place, value=given.value, way_out=str(unusable))
        if problem not in self.problems:
            self.problems.append(problem)

    # -- sources -------------------------------------------------------------------------------------------------------

    def sources(self, path: Path, raw: Mapping[Any, object]) -> Iterator[Given]:
        """Yield what each source gives for one setting, the strongest source first."""
        yield from self.variable(variable_of(path))
        key = path[-1].upper()
        if key in raw:
            yield Given(place_of(path), raw[key], lambda hint: from_object(hint, raw[key]))
        for row, variable, read in otel.VARIABLES:
            if row == path:
                yield from self.variable(variable, read)

    def variable(
        self, name: str, read: Callable[[Any, str, Mapping[str, str]], object] = otel.as_it_is
    ) -> Iterator[Given]:
        # A blank variable is no variable: so OpenTelemetry's specification has it, and ours had better not differ.
        if text := self.environ.get(name, "").strip():
            yield Given(name, text, lambda hint: read(hint, text, self.environ))

    # -- collectors ----------------------------------------------------------------------------------------------------

    def full_endpoint(self, path: Path, url: str, protocol: str, signal: str) -> str:
        origin = self.origins.get(path, "")
        try:
            return otel.full_endpoint(url, protocol, origin, signal)
        except Unusable as unusable:
            self.refuse(Given(origin, url, as_given), unusable)
            del self.origins[path]
            return otel.full_endpoint("", protocol, "", signal)

    def logs_collector(self, raw: object) -> otel.Collector:
        """Return where logs go: to the collector of the spans, unless the standard variables name another."""
        given = raw.get("TRACES") if isinstance(raw, Mapping) else None
        hints = hints_of(TraceSettings)
        found: dict[str, Any] = {}
        for each in fields(TraceSettings):
            if each.name in otel.Collector._fields:
                sources = self.logs_sources(each.name, given if isinstance(given, Mapping) else {})
                here = ("logs", "collector", each.name)
                found[each.name] = self.value(sources, hints[each.name], each.metadata, here, default_of(each))
        found["endpoint"] = self.full_endpoint(
            ("logs", "collector", "endpoint"), found["endpoint"], found["protocol"], "logs"
        )
        return otel.Collector(**found)

    def logs_sources(self, name: str, raw: Mapping[Any, object]) -> Iterator[Given]:
        yield from self.variable(f"OTEL_EXPORTER_OTLP_LOGS_{name.upper()}")
        for given in self.sources(("traces", name), raw):
            # What is said of traces alone does not hold for logs.
            if given.place != f"OTEL_EXPORTER_OTLP_TRACES_{name.upper()}":
                yield given


def as_given(hint: Any) -> object:
    """Read nothing: the value was read before."""
    return otel.NOT_GIVEN


def unknown_key(path: Path, key: object, keys: Iterable[str]) -> Problem:
    choices = list(keys)
    close = get_close_matches(str(key).upper(), choices, n=1)
    way_out = "must be one of: " + ", ".join(close + [each for each in choices if each not in close])
    if close:
        way_out += f" (did you mean {close[0]}?)"
    return Problem(kind="key", place=f"{place_of(path)}[{key!r}]", value=key, way_out=way_out)


def unknown_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    known = {variable_of(path) for path in paths()}
    for name in environ:
        if name.startswith(ROOT + "_") and name not in known:
            close = get_close_matches(name, known, n=1)
            way_out = f"the nearest known one is {close[0]}" if close else "no known one is near"
            yield Problem(kind="variable", place=name, value=environ[name], way_out=way_out)
