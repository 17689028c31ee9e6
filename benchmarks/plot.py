"""The plot: what each stack adds to each page, as bars, in SVG that needs no library to be drawn."""

from __future__ import annotations

from xml.sax.saxutils import escape

from benchmarks.report import TITLES, title

COLOURS = ("#b5483a", "#2a6f97", "#6a994e", "#8d6a9f", "#bc8a2c", "#5c677d", "#3d8b85", "#a4508b", "#7f5539", "#495057")
WIDTH, LABEL, BAR, GAP = 860, 250, 18, 26


def svg(heading: str, figures: dict[str, dict[str, float]]) -> str:
    """Draw ``{stack: {page: figure}}`` as percent over bare."""
    bare = figures["bare"]
    stacks = [name for name in figures if name != "bare"]
    height = 50 + sum(len(stacks) * BAR + GAP for _ in bare)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(heading)}</text>',
    ]
    y = 46
    for page, base in bare.items():
        extra = {name: (figures[name].get(page, base) - base) / base * 100 for name in stacks}
        widest = max([*extra.values(), 0.001])
        parts.append(f'<text x="12" y="{y + 8}" font-size="12" font-weight="bold">{escape(TITLES[page])}</text>')
        y += GAP - 10
        for number, name in enumerate(stacks):
            length = max(1.0, extra[name] / widest * (WIDTH - LABEL - 90))
            colour = COLOURS[number % len(COLOURS)]
            parts.append(
                f'<text x="{LABEL - 8}" y="{y + 11}" font-size="12" text-anchor="end">{escape(title(name))}</text>'
                f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR - 5}" fill="{colour}"/>'
                f'<text x="{LABEL + length + 6:.1f}" y="{y + 11}" font-size="12">{extra[name]:+.1f} %</text>'
            )
            y += BAR
        y += 10
    return "\n".join([*parts, "</svg>", ""])
