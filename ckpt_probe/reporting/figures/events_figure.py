"""Figures of events: intervals of onset, change and end on the axis of steps, with the metrics beneath."""

from pathlib import Path

import numpy as np

from ckpt_probe.errors import DataError, printable
from ckpt_probe.findings import Findings
from ckpt_probe.findings.detection import name_of
from ckpt_probe.reporting.figures.canvas import require_drawable, save, styled
from ckpt_probe.reporting.plots.description import colour_of

HEIGHT_OF_ROW, HEIGHT_OF_METRICS, WIDTH = 0.22, 2.6, 7.0
BARS = {"change": (0.25, 0.35), "onset": (0.7, 1.0), "end": (0.7, 0.55)}
"""Height and opacity of the bars of each kind of event."""


def draw_events(findings: Findings, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw intervals, one row per metric sorted by onset, and the metrics beneath, each between 0 and 1.

    Rows of one metric in several runs of a group are drawn upon each other; the metrics have a band over the runs.

    Args:
        findings: The findings.
        path: File to write; its suffix .svg, .png or .pdf decides the format.
        overwrite: Whether to replace an existing file.

    Raises:
        DataError: If there is no event.
        UsageError: If matplotlib is not installed, or the suffix is unknown.
    """
    path = Path(path)
    require_drawable(path, overwrite=overwrite)
    rows: dict[str, list] = {}
    for event in findings:
        rows.setdefault(name_of(event), []).append(event)
    if not rows:
        raise DataError(f"{path}: no event to draw")
    names = sorted(
        rows, key=lambda name: np.median([e["from_step"] for e in rows[name] if e["kind"] == "onset"] or [0])
    )
    with styled():
        import matplotlib.pyplot as plt

        heights = [HEIGHT_OF_ROW * len(names) + 0.3, HEIGHT_OF_METRICS]
        figure, (above, below) = plt.subplots(
            2, 1, sharex=True, figsize=(WIDTH, sum(heights) + 0.6), height_ratios=heights, layout="constrained"
        )
        for row, name in enumerate(names):
            colour = colour_of(row, len(names))
            count = len({(event["group"], event["seed"]) for event in rows[name]})
            for event in rows[name]:
                height, opacity = BARS[event["kind"]]
                width = event["to_step"] - event["from_step"]
                above.barh(row, width, height, event["from_step"], color=colour, alpha=opacity / count**0.5, lw=0)
            curves = [each for each in findings.series if each.name == name]
            steps = sorted(set.intersection(*(set(each.steps.tolist()) for each in curves)))
            values = np.array([np.interp(steps, each.steps, each.values) for each in curves])
            values = (values - values.min()) / max(np.ptp(values), 1e-300)
            below.plot(steps, values.mean(axis=0), color=colour, label=printable(name))
            if len(curves) > 1:
                below.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)
        above.set_yticks(range(len(names)), [printable(name) for name in names])
        above.invert_yaxis()
        first = min(float(each.steps[each.steps > 0][0]) for each in findings.series if each.steps[-1] > 0)
        below.set_xscale("symlog", linthresh=first)
        below.set(xlabel="step", ylabel="share of the range")
        above.set_title("dark: onset, medium: end, thin: change", loc="left")
        save(figure, path, overwrite=overwrite)
        plt.close(figure)
