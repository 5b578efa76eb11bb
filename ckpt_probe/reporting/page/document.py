"""The page of a report: one HTML file with its data, and a policy under which nothing else runs or is fetched."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_probe.addresses import without_credentials
from ckpt_probe.checkpoints.header import library_versions
from ckpt_probe.errors import printable
from ckpt_probe.files import write_text
from ckpt_probe.reporting.plots.description import Frames, Line, LinePlot, TableRows
from ckpt_probe.reporting.sections import Contents

MOST_CHARACTERS = 4000
"""Largest number of characters of a text in a page; longer texts are cut and end in an ellipsis."""

ARRAYS = {
    (Line, "x"): "f8",
    (Frames, "values"): "f4",
    **{(Line, name): "f4" for name in ("y", "low", "high", "errors")},
    (TableRows, "pictures"): "u1",
}
"""Types of fields that are arrays of numbers. Positions may be steps, which float32 cannot represent exactly."""


def encoded(contents: Contents, more: Mapping[str, Any]) -> str:
    """Encode a report and further values as JSON that is safe inside a script element."""
    arrays = _Arrays()
    data = {**arrays.object(contents), **{name: arrays.value(value) for name, value in more.items()}}
    text = json.dumps({**data, "arrays": arrays.texts}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Escape everything that could be a tag, a comment or an entity of HTML; the JSON value is the same.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class _Arrays:
    """Encoder of dataclasses that collects arrays in base64, equal arrays once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._indices: dict[str, int] = {}

    def object(self, instance: Any) -> dict[str, Any]:
        """Encode a dataclass as its fields and the name of its class ("kind")."""
        result: dict[str, Any] = {"kind": type(instance).__name__}
        for field in fields(instance):
            kind = ARRAYS.get((type(instance), field.name))
            value = getattr(instance, field.name)
            result[field.name] = self.value(value) if kind is None or value is None else self.array(value, kind)
        if isinstance(instance, Frames):
            result["shape"] = list(instance.values.shape)
        if isinstance(instance, TableRows) and instance.pictures is not None:
            result["shape"] = list(instance.pictures.shape)
        if isinstance(instance, LinePlot):
            result["names"] = {_text(name): _text(label) for name, label in instance.names.items()}
        return result

    def value(self, value: Any) -> Any:
        """Encode a value of the contents for JSON."""
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, np.ndarray):
            return self.array(value, "f4")
        if is_dataclass(value):
            return self.object(value)
        if isinstance(value, Mapping):
            return {_text(str(name)): self.value(part) for name, part in value.items()}
        if isinstance(value, Sequence):
            return [self.value(part) for part in value]
        return value

    def array(self, values: Any, kind: str) -> dict[str, Any]:
        """Encode numbers as little-endian bytes, rounded to the precision of `kind`."""
        with np.errstate(over="ignore"):
            text = base64.b64encode(np.asarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")
        index = self._indices.setdefault(text, len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return {"array": index, "type": kind}


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
