"""`ckpt-probe plot`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.command import Command, option, option_group
from ckpt_probe.cli.options import out_option, overwrite_option
from ckpt_probe.errors import UsageError
from ckpt_probe.groups import group_runs, named_paths

if TYPE_CHECKING:
    from ckpt_probe.analysis import Records

EXAMPLE = """\b
Examples: ckpt-probe plot records.jsonl -o a.svg --metric class.mir --metric nc1.pinv --log x
          ckpt-probe plot plain='plain/*.jsonl' decay='decay/*.jsonl' -o b.svg --metric accuracy"""


@click.command("plot", cls=Command, epilog=EXAMPLE)
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@option_group(
    "Figure",
    option(
        "--metric panels",
        "NAME,…",
        "Metric to draw in a panel, or several separated by commas; repeat for more panels.",
        multiple=True,
        required=True,
    ),
    option("--split splits", "NAME", "Split to draw; repeatable.", str, None, "all", multiple=True),
    option(
        "--x",
        "NAME",
        "Quantity on the x axis: step, alpha, sparsity or epoch.",
        str,
        None,
        "alpha if present, else step",
    ),
    option(
        "--log logarithmic",
        "x|y",
        "Logarithmic axis, x linear from 0 to the first positive value; repeatable.",
        click.Choice(["x", "y"]),
        multiple=True,
    ),
    option(
        "--mark marks", "X=N:LABEL", "Vertical line with a label, such as step=1200:prune; repeatable.", multiple=True
    ),
    option("--title", "TEXT", "Title above the figure."),
)
@option_group(
    "Output",
    out_option("File for the figure; its suffix .svg, .png or .pdf decides the format."),
    overwrite_option("Replace the file if it exists."),
)
def command(
    records: tuple[str, ...],
    out: Path,
    panels: tuple[str, ...],
    x: str | None,
    logarithmic: tuple[str, ...],
    marks: tuple[str, ...],
    **options: Any,
) -> None:
    """Draw metrics against the training step, the position on a path, sparsity or epoch.

    RECORDS are files of JSON Lines: from analyze -o, points.jsonl of a path, barriers.jsonl, metrics.jsonl of a run; or
    dumps, which are analyzed. Each becomes one line in the figure; NAME=FILE gives it a name. NAME=FILE1,FILE2,
    NAME='GLOB' or a directory of runs is one group with several seeds, drawn as their mean with a band from the lowest
    to the highest value. The training split is solid, the test split dashed, the value at collapse dotted.
    """
    metrics = [[name.strip() for name in panel.split(",") if name.strip()] for panel in panels]
    if not all(metrics):
        raise UsageError("--metric: expected names of metrics such as class.mir,class.hdr")

    from ckpt_probe.cli.console import say
    from ckpt_probe.reporting import draw
    from ckpt_probe.reporting.plots.curves import axis_of
    from ckpt_probe.reporting.plots.description import Mark

    series = read_files(sources(records))
    axis = x or axis_of([record for runs in series.values() for group in runs for record in group])
    axes = {"log_x": "x" in logarithmic, "log_y": "y" in logarithmic}
    lines = [Mark(*_mark(text, axis)) for text in marks]
    for note in draw(series, out, panels=metrics, x=axis, marks=lines, **axes, **options):
        say(note)
    say(f"{out}: {len(metrics)} panels of {sum(len(files) for files in series.values())} files")


def read_files(files: Mapping[str, Sequence[Path]]) -> "dict[str, list[Records]]":
    """Read the records of every file of each condition; raise DataError if a file cannot be read or has no record."""
    from ckpt_probe.analysis import Records
    from ckpt_probe.analysis.records import by_run, of_penultimate
    from ckpt_probe.analysis.series import records_of
    from ckpt_probe.cli.console import bars, say

    records: dict[str, list[Records]] = {}
    with bars() as progress, progress.task("records", sum(map(len, files.values())), "files") as bar:
        for label, paths in files.items():
            for path in paths:
                rows = records_of(path)
                curves = of_penultimate(rows)
                if len(curves) < len(rows):
                    say(f"{path}: {len(rows) - len(curves)} records of other layers than the penultimate are left out")
                for (group, _), part in by_run(curves).items():
                    records.setdefault(label if group is None else group, []).append(Records(part))
                bar.advance()
    return records


def sources(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Parse PATH, NAME=PATH, NAME=PATH1,PATH2 and NAME='GLOB' into the files of each condition by its label.

    A condition without a NAME gets the shortest label that distinguishes its files from the others. A directory of runs
    is a condition with one path per seed, and a directory of such directories has several (see `ckpt_probe.groups`).

    Raises:
        UsageError: If a glob matches nothing, or two conditions have the same name.
    """
    named = [condition for text in texts for condition in _conditions(*named_paths(text))]
    derived = iter(_labels([files for name, files in named if name is None]))
    labels = [name or next(derived) for name, _ in named]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise UsageError(f"two of the files are called {repeated}; give each a name, as NAME=FILE")
    return dict(zip(labels, (files for _, files in named), strict=True))


def _labels(files: Sequence[Sequence[Path]]) -> list[str]:
    # The first scheme that gives distinct labels; a run's metrics.jsonl is labelled by its directory.
    schemes = [
        [paths[0].stem if len(paths) == 1 else paths[0].parent.name for paths in files],
        [paths[0].resolve().parent.name for paths in files],
        [paths[0].parent.as_posix() for paths in files],
    ]
    different = [labels for labels in schemes if len(set(labels)) == len(labels) and all(labels)]
    return different[0] if different else [paths[0].as_posix() for paths in files]


def _conditions(name: str | None, paths: Sequence[Path | str]) -> list[tuple[str | None, list[Path]]]:
    """Return the paths, or those of every group in them if they are one directory of runs, with the group's name."""
    from ckpt_probe.analysis.series import is_recorded

    files = [Path(path) for path in paths]
    if len(files) != 1 or not files[0].is_dir() or is_recorded(files[0]):
        return [(name, files)]
    groups: dict[str | None, list[Path]] = {}
    for run in group_runs([(name, [*files])], is_recorded, "dumps or records", lambda _: None):
        groups.setdefault(run.group or name, []).append(Path(run.path))
    return [*groups.items()]


def _mark(text: str, axis: str) -> tuple[float, str]:
    name, _, rest = text.partition("=")
    position, _, label = rest.partition(":")
    if not re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", position.strip()):
        raise UsageError(f"--mark: expected a mark such as {axis}=1200:label, found {text!r}")
    if name.strip() != axis:
        raise UsageError(f"--mark: {text!r} gives a value of {name.strip()}, but the x axis is {axis}")
    return float(position), label
