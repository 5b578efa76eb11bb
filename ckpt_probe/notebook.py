"""Small tables and lines for notebooks: HTML that runs nothing, fetches nothing, and in which every text is escaped."""

from collections.abc import Sequence
from html import escape

LONGEST = 120
"""Characters of a text that are shown; names come from files of anybody's."""

WIDTH, HEIGHT, EDGE = 120, 20, 2


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; caption and header are text, cells are HTML: `text` or `sparkline` makes one."""
    parts = [_element("caption", text(caption, longest=500))]
    parts.append(f"<thead><tr>{''.join(_element('th', text(name)) for name in header)}</tr></thead>")
    parts += [f"<tr>{''.join(_element('td', cell) for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(parts)}</table>"


def text(value: object, *, longest: int = LONGEST) -> str:
    """Anything as escaped text of one line, cut where it is long; what cannot be printed is a replacement character."""
    whole = str(value)
    shown = whole if len(whole) <= longest else whole[: longest - 1] + "…"
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown))


def sparkline(values: Sequence[float | None], label: str) -> str:
    """A line through values, evenly spaced, broken where one is missing, with a dot at the last; `label` says it aloud.

    Empty where no value is known.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    step = (WIDTH - 2 * EDGE) / max(1, len(values) - 1)
    places = [
        None if v is None else (EDGE + i * step, HEIGHT - EDGE - (v - low) / span * (HEIGHT - 2 * EDGE))
        for i, v in enumerate(values)
    ]
    path, pen = "", "M"
    for place in places:
        path += "" if place is None else f"{pen}{place[0]:.1f} {place[1]:.1f}"
        pen = "M" if place is None else "L"
    x, y = [place for place in places if place is not None][-1]
    return (
        f'<svg role="img" aria-label="{text(label)}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path d="{path}" fill="none" stroke="currentColor"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8" fill="currentColor"/></svg>'
    )


def _element(name: str, content: str) -> str:
    return f'<{name} style="text-align:left">{content}</{name}>'
