"""The tables, from the figures."""

from __future__ import annotations

from typing import Any

from benchmarks.stacks import STACKS

TITLES = {
    "trivial": "trivial view",
    "page": "ORM + template page, 3 queries",
    "queries": "30 queries",
    "api": "JSON API, 1 query",
    "failing": "failing view",
    "async": "async view (ASGI)",
}
LOAD = {
    "p50": "p50 ms",
    "p99": "p99 ms",
    "rps": "requests/s",
    "server": "CPU us/request",
    "collector": "collector's CPU us/request",
}
UNITS = {"instructions": "million instructions", "cpu": "microseconds of CPU"}


def title(name: str) -> str:
    return STACKS[name].title


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def added(value: float, bare: float) -> str:
    """Say what comes on top, also in percent."""
    return f"{value - bare:+.3g} ({(value - bare) / bare:+.1%})".replace("%", " %")


def requests(measure: str, figures: dict[str, dict[str, float]]) -> str:
    """Tabulate ``{stack: {page: figure}}``: bare in full, the others as what they add."""
    bare = figures["bare"]
    rows = [[title("bare"), *(f"{bare[page]:.4g}" for page in bare)]]
    rows += [
        [title(name), *(added(by_page[page], bare[page]) if page in by_page else "" for page in bare)]
        for name, by_page in figures.items()
        if name != "bare"
    ]
    return table([UNITS[measure], *(TITLES[page] for page in bare)], rows)


def differences(figures: dict[str, dict[str, dict]]) -> str:
    """Tabulate CPU time: bare in full, the others as what they add within a round."""
    bare = figures["bare"]

    def cell(page: str, value: dict[str, float]) -> str:
        whole = value.get("first", bare[page]["median"])
        low, high = value["added_low"] / whole, value["added_high"] / whole
        return f"{value['added']:+.3g} ({value['added'] / whole:+.1%}; {low:+.1%} to {high:+.1%})".replace("%", " %")

    rows = [[title("bare"), *(f"{value['median']:.4g}" for value in bare.values())]]
    rows += [
        [title(name), *(cell(page, by_page[page]) if page in by_page else "" for page in bare)]
        for name, by_page in figures.items()
        if name != "bare"
    ]
    return table([UNITS["cpu"], *(TITLES[page] for page in bare)], rows)


def arrivals(figures: dict[str, dict[str, dict]]) -> str:
    """Tabulate what arrived of a request for each page: ``lines / spans / samples``, and the bytes sent."""
    pages = next(iter(figures.values()))
    rows = [
        [
            title(name),
            *(
                "{lines:.3g} / {spans:.3g} / {samples:.3g}, {bytes:.0f} B".format(
                    spans=by_page[page]["server spans"] + by_page[page]["client spans"], **by_page[page]
                )
                if page in by_page
                else ""
                for page in pages
            ),
        ]
        for name, by_page in figures.items()
    ]
    return table(["lines / OTLP spans / samples, bytes sent", *(TITLES[page] for page in pages)], rows)


def under_load(figures: dict[str, dict[str, dict]]) -> str:
    pages = next(iter(figures.values()))
    header = ["stack", *(f"{TITLES[page]}: {heading}" for page in pages for heading in LOAD.values())]
    rows = [
        [
            title(name),
            *(f"{by_page[page][key]['median']:.4g}" if key in by_page[page] else "" for page in pages for key in LOAD),
        ]
        for name, by_page in figures.items()
    ]
    return table(header, rows)


def single(figures: dict[str, dict[str, float]], unit: str) -> str:
    bare = figures["bare"]["median"]
    rows = [
        [
            title(name),
            f"{value['median']:.1f}",
            f"{value['low']:.1f} to {value['high']:.1f}",
            f"{value.get('added', value['median'] - bare):+.1f}",
        ]
        for name, value in figures.items()
    ]
    return table(["stack", unit, "quartiles", "added"], rows)


def start_up(figures: dict[str, dict[str, float]]) -> str:
    counted = {name: {"start": value["instructions"] / 1e6} for name, value in figures.items()}
    rows = [
        [
            title(name),
            f"{value['start']:.0f}" if name == "bare" else added(value["start"], counted["bare"]["start"]),
        ]
        for name, value in counted.items()
    ]
    return single(figures, "ms of CPU, `manage.py check`") + "\n" + table(["stack", "million instructions"], rows)


def markdown(results: dict[str, Any]) -> str:
    """Write the results as a page."""
    about = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = [
        "# Results\n",
        (
            f"Commit {about['commit']}, {about['date']}; {about['python']}; "
            f"{about['processors']} x {about['processor']}, {about['system']}; {versions}.\n"
        ),
    ]
    measured = {name for measures in results["databases"].values() for figures in measures.values() for name in figures}
    if peers := [pin for name in sorted(measured) for pin in STACKS[name].requirements if "==" in pin]:
        parts += [f"Peers, each in an environment of its own: {', '.join(peers)}.\n"]
    for database, measures in results["databases"].items():
        if "delivered" in measures:
            parts += [f"## What arrives of a request, {database}\n", arrivals(measures["delivered"])]
        if "instructions" in measures:
            figures = {
                name: {page: value["median"] / 1e6 for page, value in by_page.items()}
                for name, by_page in measures["instructions"].items()
            }
            parts += [f"## Instructions per request, {database}\n", requests("instructions", figures)]
            parts += [spreads(measures["instructions"], "Medians of memory layouts", "layouts")]
            parts += deliveries(measures.get("delivery", {}))
        if "cpu" in measures:
            parts += [f"## CPU time per request, {database}\n", differences(measures["cpu"])]
            parts += [
                "Medians of interleaved rounds; what comes on top is the median of the differences within a round."
            ]
            parts += [
                "In brackets: in percent of bare, and between which values the middle half of the differences lies.\n"
            ]
        if "latency" in measures:
            parts += [f"## Under load, {database}\n", under_load(measures["latency"])]
    if "memory" in results:
        parts += ["## Memory per worker\n", single(results["memory"], "MB (PSS)")]
    if "startup" in results:
        parts += ["## Start-up\n", start_up(results["startup"])]
    return "\n".join(parts)


def deliveries(figures: dict[str, dict[str, float]]) -> list[str]:
    """Say what a delivery costs, whatever is in it."""
    rest = {name: sum(by_page.values()) / 1e6 for name, by_page in figures.items() if name != "bare"}
    if not rest:
        return []
    told = ", ".join(f"{title(name)} {million:.1f}" for name, million in rest.items())
    return [f"A delivery, once in some seconds, takes besides, in million instructions: {told}.\n"]


def spreads(figures: dict[str, dict[str, dict]], what: str, samples: str) -> str:
    """Say how far the middle half of the samples lies apart, of cells where they differ the median and the widest."""
    widths = sorted(
        (value["high"] - value["low"]) / value["median"]
        for by_page in figures.values()
        for value in by_page.values()
        if value["high"] > value["low"]
    )
    if not widths:
        return f"{what}.\n"
    return (
        f"{what}. The middle half of the {samples} spans {widths[len(widths) // 2]:.1%} "
        f"of the median in the middle cell, {widths[-1]:.1%} in the widest: differences below that mean nothing.\n"
    ).replace("%", " %")
