"""Paths → plots of loss and error along them, with the barrier measured from the chord; aligned beside not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_probe.analysis.records import number
from ckpt_probe.reporting.plots.description import Axis, Line, LinePlot, Span, Style
from ckpt_probe.reporting.plots.metrics import told_by_split
from ckpt_probe.reporting.plots.panels import AXIS_NAMES
from ckpt_probe.reporting.sources import PathContents

QUANTITIES = {"loss": ("loss", "nats"), "error": ("error", "")}


def path_plots(paths: Mapping[str, PathContents]) -> list[tuple[str, list[LinePlot]]]:
    """Plots by pair of ends: those of the paths between the same two, aligned and not, to one scale side by side."""
    pairs: dict[tuple[object, object], list[str]] = {}
    for name, path in paths.items():
        ends = path.plan.get("a"), path.plan.get("b")
        pairs.setdefault(ends if None not in ends else (name, ""), []).append(name)
    groups = []
    for names in pairs.values():
        ordered = sorted(names, key=lambda name: str(paths[name].plan.get("align") or ""))
        plots = [
            plot
            for quantity in QUANTITIES
            for plot in _to_one_scale([_plot(name, paths[name], quantity) for name in ordered])
        ]
        groups.append((_title([paths[name] for name in ordered], ordered), plots))
    return groups


def alignment_of(path: PathContents) -> str:
    """How B was aligned, in words."""
    align = path.plan.get("align")
    return f"aligned by {align}" if align else "not aligned"


def _plot(name: str, path: PathContents, quantity: str) -> LinePlot:
    label, unit = QUANTITIES[quantity]
    lines, spans, chords = [], [], []
    splits = list(dict.fromkeys(str(record["split"]) for record in path.points))
    styles = {split: Style(dash="solid" if split == "train" else "dashed", hollow=split != "train") for split in splits}
    for split in splits:
        mine = [record for record in path.points if record["split"] == split]
        x = [number(record, "alpha", name) or 0.0 for record in mine]
        lines.append(Line(name, quantity, split, x, [_value(r, quantity) for r in mine], styles[split], name=split))
    lines = told_by_split(lines)
    for line in lines:
        ends = [dict(zip(line.x, line.y, strict=True)).get(alpha, math.nan) for alpha in (0.0, 1.0)]
        if any(map(math.isnan, ends)):
            continue
        chords.append((0.0, ends[0], 1.0, ends[1], line.style.colour))
        spans += _spans(name, path, quantity, line, ends)
    shape = str(path.plan.get("path") or "path")
    return LinePlot(
        key=f"path-{name}-{quantity}",
        title=f"{name}: {label}, {alignment_of(path)}",
        x=Axis(AXIS_NAMES["alpha"]),
        y=Axis(label, unit),
        lines=lines,
        names={quantity: label},
        meaning=f"{shape} from α = 0 to α = 1; dotted: the chord between the ends, from which the barrier is measured",
        spans=tuple(spans),
        chords=tuple(chords),
    )


def _spans(name: str, path: PathContents, quantity: str, line: Line, ends: Sequence[float]) -> list[Span]:
    summary = next((record for record in path.summary if str(record.get("split")) == line.split), {})
    barrier = number(summary, f"barrier.{quantity}", name)
    alpha = number(summary, f"barrier.{quantity}_alpha", name)
    if barrier is None or alpha is None or barrier <= 0:
        return []
    low = (1 - alpha) * ends[0] + alpha * ends[1]
    label = f"barrier {barrier:.3g} ({line.split})"
    return [Span(alpha, low, low + barrier, f"barrier, {line.split}", label, line.style.colour)]


def _to_one_scale(plots: Sequence[LinePlot]) -> list[LinePlot]:
    values = [value for plot in plots for line in plot.lines for value in line.y if not math.isnan(value)]
    if not values:
        return []
    if len(plots) == 1:
        # A chord is straight, and a barrier as long as it looks, on a linear axis only: none is logarithmic at first.
        return list(plots)
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [replace(plot, y=replace(plot.y, bounds=(low - margin, high + margin))) for plot in plots]


def _value(record: Mapping[str, object], quantity: str) -> float:
    found = number(record, "loss" if quantity == "loss" else "accuracy", "path")
    if found is None:
        return math.nan
    return found if quantity == "loss" else 1 - found


def _title(paths: Sequence[PathContents], names: Sequence[str]) -> str:
    ends = [str(paths[0].result.get(end) or "") for end in ("from", "to")]
    between = f": {ends[0]} → {ends[1]}" if all(ends) else ""
    return ", ".join(names) + between
