"""The page of a report: one HTML file with its data, and a policy under which nothing else runs or is fetched."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.addresses import without_credentials
from ckpt_probe.checkpoints.metadata import library_versions
from ckpt_probe.errors import UsageError, printable
from ckpt_probe.files import refuse_existing, write_text
from ckpt_probe.groups import Sources
from ckpt_probe.keywords import as_sequence
from ckpt_probe.moments import MEMORY
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.material import MIR_ROWS, TITLE, Material
from ckpt_probe.reporting.plots.description import Bar, Frames, IntervalPlot, Line, TableRows
from ckpt_probe.reporting.sections import Contents, gather
from ckpt_probe.reporting.sources import class_names, open_sources


@dataclass(frozen=True)
class ReportSummary:
    """The result of `report`.

    Attributes:
        sections: Number of sections of the page.
        size: Size of the page in bytes; None if only figures were written.
        figures: Files of the figures.
        events: Intervals of events of every run: the run, the bar of the event.
    """

    sections: int
    size: int | None
    figures: tuple[Path, ...]
    events: tuple[tuple[str, Bar], ...] = ()


def report(
    sources: Sources,
    out: Path | str | None = None,
    *,
    figures: Path | str | None = None,
    figure_format: str = "svg",
    title: str = TITLE,
    labels: Path | str | Sequence[str] | None = None,
    splits: str | Sequence[str] | None = None,
    memory: int = MEMORY,
    mir_rows: int = MIR_ROWS,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    workers: int = 1,
    cache: bool = True,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> ReportSummary:
    """Write a page of all results: metrics, matrices, spectra, classes, paths, planes and their provenance.

    Args:
        sources: Dumps (a file or a directory), records (files, or the directory of a run), and directories of paths
            and planes, recognised by their content; a mapping names them.
        out: HTML file of the page, which contains all its data.
        figures: Directory to draw the plots into, one file per plot.
        figure_format: Format of the figures: "svg", "pdf" or "png".
        title: Heading of the page.
        labels: Names of the classes, or a text file with one name per line; those in the dumps if None.
        splits: Splits of the dumps to analyze; all if None.
        memory: Memory limit for the analysis of one dump, in bytes.
        mir_rows: Number of stored rows for MIR between layers; 0 leaves it out.
        data: Name of the data of the dumps, as for `extract`, to show names and small pictures of the worst examples.
        data_arguments: Arguments of the data; those in the dumps if None and they name the same data.
        workers: Number of processes that analyze dumps.
        cache: Whether to use the cache of records.
        overwrite: Whether to replace an existing page and existing figures.
        command: Command line that made the report, shown with its provenance.
        progress: Receives messages and bars.

    Raises:
        UsageError: If neither `out` nor `figures` is given, a file exists and `overwrite` is false, or is no page,
            or two sources have the same name.
        DataError: If a source cannot be read.
    """
    if out is None and figures is None:
        raise UsageError(
            'report: choose an output: `out="report.html"` for a page, `figures="DIR"` for figures, or both'
        )
    if out is not None:
        refuse_existing(Path(out), overwrite=overwrite)
        if Path(out).is_file():
            with Path(out).open("rb") as file:
                if file.read(1) not in (b"", b"<"):
                    raise UsageError(f"{out}: not a page, so that a page does not replace it; choose another name")
    progress = progress or NullProgress()
    names = class_names(Path(labels)) if isinstance(labels, Path | str) else tuple(labels or ())
    chosen = as_sequence(splits) or ()
    material = Material(title, names, chosen, memory, workers, cache, mir_rows, data, data_arguments)
    contents = gather(open_sources(sources), material, progress)
    files: list[Path] = []
    if figures is not None:
        from ckpt_probe.reporting.figures import draw_contents

        files = draw_contents(contents, Path(figures), figure_format, overwrite=overwrite, progress=progress)
    size = None if out is None else write_page(contents, Path(out), command=command, overwrite=overwrite)
    events = [
        (plot.title, bar)
        for section in contents.sections
        for plot in section.plots
        if isinstance(plot, IntervalPlot)
        for bar in plot.bars
    ]
    return ReportSummary(len(contents.sections), size, tuple(files), tuple(events))


MOST_CHARACTERS = 4000
"""Largest number of characters of a text in a page; longer texts are cut and end in an ellipsis."""

ARRAYS = {
    (Line, "x"): "f8",
    (Frames, "values"): "f4",
    **{(Line, name): "f4" for name in ("y", "low", "high", "errors")},
    (TableRows, "pictures"): "u1",
}
"""Types of fields that are arrays of numbers. Positions may be steps, which float32 cannot represent exactly."""

WITH_SHAPE = {(Frames, "values"), (TableRows, "pictures")}
"""Fields of arrays whose shape is encoded beside them."""


def encoded(contents: Contents, more: Mapping[str, Any]) -> str:
    """Encode a report and further values as JSON that is safe inside a script element.

    A dataclass becomes an object of its fields and the name of its class ("kind"). Arrays are collected in base64,
    equal ones once.
    """
    arrays: dict[str, int] = {}

    def array(values: Any, kind: str) -> dict[str, Any]:
        """Encode numbers as little-endian bytes, rounded to the precision of `kind`."""
        with np.errstate(over="ignore"):
            text = base64.b64encode(np.asarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")
        return {"array": arrays.setdefault(text, len(arrays)), "type": kind}

    def value(item: Any) -> Any:
        if isinstance(item, str):
            return _text(item)
        if isinstance(item, np.ndarray):
            return array(item, "f4")
        if is_dataclass(item):
            result: dict[str, Any] = {"kind": type(item).__name__}
            for name in (field.name for field in fields(item)):
                kind, part = ARRAYS.get((type(item), name)), getattr(item, name)
                result[name] = value(part) if kind is None or part is None else array(part, kind)
                if (type(item), name) in WITH_SHAPE and part is not None:
                    result["shape"] = list(part.shape)
            return result
        if isinstance(item, Mapping):
            return {_text(str(name)): value(part) for name, part in item.items()}
        return [value(part) for part in item] if isinstance(item, Sequence) else item

    data = {**value(contents), **{name: value(item) for name, item in more.items()}}
    text = json.dumps({**data, "arrays": [*arrays]}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Escape everything that could be a tag, a comment or an entity of HTML; the JSON value is the same.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(text: str) -> str:
    text = without_credentials(text)
    return printable(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")


STATIC = Path(__file__).parent / "static"
LIBRARIES = ("vendor/d3-7.9.0.min.js", "vendor/plot-0.6.17.umd.min.js")
PARTS = (
    *("base", "state", "cards", "lines", "events", "matrices", "layers"),
    *("spectra", "classes", "examples", "planes", "controls", "page"),
)
"""The page's own program, in the order in which it is read; one script, so that its parts know one another."""

PLOT_STYLE = "plot.css"
"""Style that Observable Plot adds to each drawing, letter by letter; the policy permits it by its hash."""


def write_page(contents: Contents, path: Path, *, command: str = "", overwrite: bool = False) -> int:
    """Write the page of a report atomically, and return its size in bytes.

    Raises:
        UsageError: If the file exists and `overwrite` is not set.
        DataError: If it cannot be written.
    """
    text = page_of(contents, command)
    write_text(path, text, overwrite=overwrite)
    return len(text.encode("utf-8"))


def page_of(contents: Contents, command: str = "") -> str:
    """Return the HTML of a report; equal contents give equal pages.

    The content security policy allows only the scripts and styles of the page, by their hashes: the page sends no
    request, and no text in it can become a script.

    Args:
        contents: Contents of the report.
        command: Command line that made the report, shown with its provenance.
    """
    versions = library_versions()
    libraries, program = [_read(name) for name in LIBRARIES], "".join(_read(f"{name}.js") for name in PARTS)
    style = _read("page.css")
    data = encoded(contents, {"command": command, "versions": versions})
    scripts = "\n".join(
        [*(f"<script>{library}</script>" for library in libraries), f'<script type="module">{program}</script>']
    )
    return _read("page.html").format(
        policy=_policy([*libraries, program], [style, _read(PLOT_STYLE)]),
        version=html.escape(versions["ckpt-probe"]),
        title=html.escape(printable(without_credentials(contents.title))[:200]),
        style=style,
        data=data,
        scripts=scripts,
    )


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    allowed = {"script-src": scripts, "style-src": styles}
    rules = [f"{name} {' '.join(map(_hash, texts))}" for name, texts in allowed.items()]
    return "; ".join(["default-src 'none'", *rules, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


@cache
def _read(name: str) -> str:
    # HTML normalises line ends, so the hash must be that of the normalised text.
    return (STATIC / name).read_text(encoding="utf-8").replace("\r\n", "\n")
