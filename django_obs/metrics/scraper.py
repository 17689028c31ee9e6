"""The scraper: the sum of all lanes, as families with samples and as lines of text."""

from __future__ import annotations

import os
import threading
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES, escape_label_name, escape_metric_name
from prometheus_client.utils import floatToGoString
from prometheus_client.validation import _is_valid_legacy_metric_name

from .archive import LIVE_MODES, Archive, merge
from .exemplars import read_newest
from .index import Index
from .lanes import LaneState, longest, read_all

if TYPE_CHECKING:
    import array
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from prometheus_client.samples import Exemplar

    from .index import Definition, Series

# prometheus_client does not type its own.
go_string: Callable[[float], str] = floatToGoString

# Cells that are shown, as zeros, even if no lane has as many.
LEAST_CELLS = 1 << 18

# The numbers that most samples have; looking them up takes a fifth of the time of formatting them.
_TEXTS = {float(n): f"{n}.0" for n in range(1000)}


def number(value: float) -> str:
    """Write a float as prometheus_client does."""
    return _TEXTS.get(value) or (repr(value) if -1e6 < value < 1e6 else go_string(value))


def escape(value: str) -> str:
    """Escape a label value; what UTF-8 cannot carry becomes a question mark, as one such value must not fail a page."""
    text = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class Row:
    """A label set of a family: its slot, and what stands before the value on each of its lines."""

    __slots__ = ("created", "labels", "labelvalues", "prefixes", "slot")

    def __init__(self, family: Family, series: Series, escaping: str) -> None:
        self.slot = series.slot
        self.created = series.created
        self.labelvalues = series.labelvalues
        names = family.definition.labelnames
        self.labels: list[tuple[str, str]] = [
            (name, f'{escape_label_name(name, escaping)}="{escape(value)}"')
            for name, value in zip(names, series.labelvalues, strict=False)
        ]
        self.prefixes = [
            _prefix(family.name + suffix, [*self.labels, ("le", f'le="{bound}"')] if bound else self.labels, escaping)
            for suffix, bound in family.suffixes
        ]


def _prefix(name: str, pairs: list[tuple[str, str]], escaping: str) -> str:
    labels = ",".join(text for _, text in sorted(pairs))
    if escaping == ALLOWUTF8 and not _is_valid_legacy_metric_name(name):
        return "{" + escape_metric_name(name, escaping) + ("," + labels if labels else "") + "} "
    return escape_metric_name(name, escaping) + ("{" + labels + "} " if labels else " ")


class Family:
    """A metric of the store: its current definition, and the rows by escaping scheme."""

    def __init__(self, metric: int, definition: Definition, documentation: str, unit: str) -> None:
        self.metric = metric
        self.definition = definition
        self.name = definition.name
        self.kind = definition.kind
        self.documentation = documentation
        self.unit = unit
        self.series: list[Series] = []
        self.end = 0  # of the slots of all its series
        self._rows: dict[str, list[Row]] = {}
        if self.kind == "counter":
            self.suffixes = [("_total", "")]
        elif self.kind == "gauge":
            self.suffixes = [("", "")]
        elif self.kind == "summary":
            self.suffixes = [("_count", ""), ("_sum", "")]
        else:
            self.suffixes = [("_bucket", bound) for bound in definition.bounds]
            self.suffixes.append(("_count", ""))
            # A negative bound makes the sum no counter: prometheus_client leaves it out, as OpenMetrics demands.
            if float(definition.bounds[0]) >= 0:
                self.suffixes.append(("_sum", ""))

    def rows(self, escaping: str = UNDERSCORES) -> list[Row]:
        """Give the rows; their text is made once."""
        rows = self._rows.get(escaping, [])
        if len(rows) < len(self.series):
            # A new list, as another thread may be at the same.
            rows = rows + [Row(self, series, escaping) for series in self.series[len(rows) :]]
            self._rows[escaping] = rows
        return rows


class Page(NamedTuple):
    """One reading of the store."""

    families: list[Family]
    lanes: list[LaneState]
    totals: Sequence[float]
    columns: list[array.array[float]]
    archive: dict[int, tuple[float, float]]
    series: int
    slots: int
    index_bytes: int
    damaged: int

    @property
    def dropped(self) -> int:
        """Count the label sets that max_series has sent to an overflow series."""
        return sum(lane.dropped for lane in self.lanes)

    def family(self, name: str) -> Family | None:
        """Give the family of this name, in which a counter has no ``_total``."""
        return next((family for family in self.families if family.name == name), None)

    def rows(self, family: Family, escaping: str = UNDERSCORES) -> list[Row]:
        """Give the rows of a family that were there at this reading; a later one may have added to it."""
        rows = family.rows(escaping)
        if family.end > self.slots:
            rows = [row for row in rows if row.slot + family.definition.slots <= self.slots]
        return rows

    def gauges(self, family: Family, row: Row) -> list[tuple[str, float]]:
        """Give (pid or "", value): one pair, or one for each process in the modes that show all."""
        mode = family.definition.mode
        slot = row.slot
        live = mode in LIVE_MODES
        found = [
            (lane, column[slot], column[slot + 1])
            for lane, column in zip(self.lanes, self.columns, strict=True)
            if column[slot + 1] and (lane.alive or not live)
        ]
        if mode in ("all", "liveall"):
            pids: dict[str, float] = {}
            for lane, value, _ in sorted(found, key=lambda entry: (not entry[0].alive, -entry[0].started)):
                pid = str(lane.pid)
                if pid in pids and lane.alive:  # containers that share the directory: each has its pid 7
                    pid = f"{pid}.{lane.number}"
                pids.setdefault(pid, value)
            return list(pids.items())
        pairs = [(value, time) for _, value, time in found]
        if not live and slot in self.archive:
            pairs.append(self.archive[slot])
        merged = merge(mode, pairs)
        return [] if merged is None else [("", merged[0])]

    def values(self, family: Family, row: Row) -> list[float]:
        """Give the values of a row in the order of its lines; not for gauges."""
        slot = row.slot
        totals = self.totals
        if family.kind == "counter":
            return [totals[slot]]
        if family.kind == "summary":
            return [totals[slot], totals[slot + 1]]
        values = []
        total = 0.0
        count = len(family.definition.bounds)
        for value in totals[slot : slot + count]:
            total += value
            values.append(total)
        values.append(total)
        if len(family.suffixes) > count + 1:
            values.append(totals[slot + count])
        return values

    def lines(
        self, family: Family, escaping: str = UNDERSCORES, exemplars: dict[int, Exemplar] | None = None
    ) -> list[str]:
        """Write the sample lines of a family, with exemplars if they are given (by slot), for OpenMetrics."""
        lines: list[str] = []
        if family.kind == "gauge":
            name = family.name
            for row in self.rows(family, escaping):
                for pid, value in self.gauges(family, row):
                    prefix = row.prefixes[0]
                    if pid:
                        labels = [pair for pair in row.labels if pair[0] != "pid"]
                        prefix = _prefix(name, [*labels, ("pid", f'pid="{pid}"')], escaping)
                    lines.append(f"{prefix}{number(value)}\n")
            return lines
        buckets = len(family.definition.bounds) or 1
        for row in self.rows(family, escaping):
            values = self.values(family, row)
            if exemplars and family.kind != "summary":
                for i, (prefix, value) in enumerate(zip(row.prefixes, values, strict=True)):
                    exemplar = exemplars.get(row.slot + i) if i < buckets else None
                    lines.append(f"{prefix}{number(value)}{_exemplar_text(exemplar)}\n")
            else:
                lines += [f"{p}{number(v)}\n" for p, v in zip(row.prefixes, values, strict=True)]
        return lines

    def text(self) -> str:
        """Write the whole in the text format 0.0.4."""
        parts: list[str] = []
        for family in self.families:
            name = escape_metric_name(family.name + ("_total" if family.kind == "counter" else ""), UNDERSCORES)
            help_text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
            parts.append(f"# HELP {name} {help_text}\n# TYPE {name} {family.kind}\n")
            parts += self.lines(family)
        return "".join(parts)

    def collect(self) -> Iterator[Metric]:
        """Give the families as prometheus_client's, for its own writers and tests."""
        for family in self.families:
            metric = Metric(family.name, family.documentation, family.kind, family.unit)
            names = family.definition.labelnames
            for row in self.rows(family):
                labels = dict(zip(names, row.labelvalues, strict=False))
                if family.kind == "gauge":
                    for pid, value in self.gauges(family, row):
                        metric.add_sample(family.name, {**labels, "pid": pid} if pid else labels, value)
                    continue
                for (suffix, bound), value in zip(family.suffixes, self.values(family, row), strict=True):
                    metric.add_sample(family.name + suffix, {**labels, "le": bound} if bound else labels, value)
            yield metric


def _exemplar_text(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    labels = ",".join(f'{name}="{escape(value)}"' for name, value in sorted(exemplar.labels.items()))
    return f" # {{{labels}}} {go_string(exemplar.value)} {exemplar.timestamp}"


class Scraper:
    """Reads the directory of a store, from any process; keeps the parsed index and the prefixes of its lines.

    A directory that is not there is an empty page; nothing is ever written.
    """

    def __init__(self, directory: Callable[[], Path]) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._families: dict[str, Family] = {}
        self._seen = 0
        self._revision = -1
        self._removed: set[int] = set()

    def read(self) -> Page:
        """Read all lanes once."""
        with self._lock:
            directory = self.directory()
            index = self._refresh(directory)
            if index is None:
                return Page([], [], [], [], {}, 0, 0, 0, 0)
            with Archive(directory / "archive").reading() as archive:
                # A damaged index may speak of more than there is or than memory holds.
                slots = min(index.slots, max(longest(directory), LEAST_CELLS))
                lanes = list(read_all(directory, index.generation, slots))
            columns = [column for _, column in lanes]
            totals: Sequence[float] = [0.0] * slots
            if len(columns) == 1:
                totals = columns[0]
            elif columns:
                totals = list(map(sum, zip(*columns, strict=True)))
            states = [state for state, _ in lanes]
            families = [family for family in self._families.values() if family.series]
            return Page(families, states, totals, columns, archive, index.samples, slots, index.size, index.damaged)

    def _refresh(self, directory: Path) -> Index | None:
        index = self._index
        if index is not None and (index.path.parent != directory or index.replaced):
            index.close()
            index = None
        if index is None:
            self._revision = -1
            try:
                index = Index(directory / "index", writable=False)
            except OSError:
                self._index = None
                return None
            self._index = index
        index.refresh()
        index.refresh_removals()
        index.take_gone()
        removed = index.removals.slots
        if index.revision != self._revision or removed != self._removed:
            self._revision = index.revision
            self._removed = set(removed)
            self._families = {}
            self._seen = 0
        for series in islice(index.listed, self._seen, None):
            definition = index.definitions[series.metric]
            if index.current[definition.name] != series.metric or series.slot in removed:
                continue
            family = self._families.get(definition.name)
            if family is None:
                family = Family(series.metric, definition, *index.documentation[series.metric])
                self._families[definition.name] = family
            family.series.append(series)
            family.end = max(family.end, series.slot + definition.slots)
        self._seen = len(index.listed)
        return index

    def collect(self) -> Iterable[Metric]:
        """Read, and give prometheus_client's families: a Scraper is a collector."""
        return self.read().collect()

    def text(self) -> str:
        """Read, and write the text format 0.0.4."""
        return self.read().text()

    def lanes(self) -> list[LaneState]:
        """Tell the processes that hold or held a lane."""
        with self._lock:
            directory = self.directory()
            index = self._refresh(directory)
            return [state for state, _ in read_all(directory, index.generation, 0)] if index else []

    def exemplars(self) -> dict[int, Exemplar]:
        """Read the newest exemplar of each cell, by slot."""
        directory = self.directory()
        try:
            names = [name for name in os.listdir(directory) if name.startswith("exemplars-")]
        except OSError:
            return {}
        return read_newest(directory / name for name in names)
