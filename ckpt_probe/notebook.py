"""Small tables and line charts for notebooks: HTML without scripts and external files, with every text escaped."""

from collections.abc import Sequence
from html import escape

from ckpt_probe.errors import shortened

LONGEST = 120
"""Largest number of characters of a text; names come from untrusted files."""

WIDTH, HEIGHT, EDGE = 120, 20, 2


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table.

    Args:
        caption: Plain text above the table.
        header: Plain text of the column titles.
        rows: HTML of the cells, from `text` or `sparkline`.
    """
    parts = [_element("caption", text(caption, longest=500))]
    parts.append(f"<thead><tr>{''.join(_element('th', text(name)) for name in header)}</tr></thead>")
    parts += [f"<tr>{''.join(_element('td', cell) for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(parts)}</table>"


def text(value: object, *, longest: int = LONGEST) -> str:
    """Return a value as escaped text of one line, cut after `longest` characters, without unprintable characters."""
    line = shortened(str(value), longest)
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line))


def sparkline(values: Sequence[float | None], label: str) -> str:
    """Draw a line through evenly spaced values as SVG, interrupted at missing values, with a dot at the last one.

    Args:
        values: The values, None for a missing one.
        label: Text for screen readers.

    Returns:
        SVG, or "" if no value is known.
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    step = (WIDTH - 2 * EDGE) / max(1, len(values) - 1)
    points = [
        None if v is None else (EDGE + i * step, HEIGHT - EDGE - (v - low) / span * (HEIGHT - 2 * EDGE))
        for i, v in enumerate(values)
    ]
    path, pen = "", "M"
    for point in points:
        path += "" if point is None else f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "M" if point is None else "L"
    x, y = [point for point in points if point is not None][-1]
    return (
        f'<svg role="img" aria-label="{text(label)}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path d="{path}" fill="none" stroke="currentColor"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8" fill="currentColor"/></svg>'
    )


def _element(name: str, content: str) -> str:
    return f'<{name} style="text-align:left">{content}</{name}>'
