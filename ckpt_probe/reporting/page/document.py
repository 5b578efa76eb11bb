"""The HTML of a page: its parts in one file, and a policy under which nothing but them runs or is fetched."""

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import printable
from ckpt_probe.files import write_text
from ckpt_probe.reporting.contents import Contents
from ckpt_probe.reporting.page.encoding import encoded
from ckpt_probe.reporting.provenance import versions

STATIC = Path(__file__).parent / "static"
LIBRARIES = ("vendor/d3-7.9.0.min.js", "vendor/plot-0.6.17.umd.min.js")
PARTS = (
    *("base", "state", "cards", "lines", "events", "matrices", "layers"),
    *("spectra", "classes", "examples", "planes", "controls", "page"),
)
"""The page's own program, in the order in which it is read; one script, so that its parts know one another."""

PLOT_STYLE = """:where(.plot-d6a7b5) {
  --plot-background: white;
  display: block;
  height: auto;
  height: intrinsic;
  max-width: 100%;
}
:where(.plot-d6a7b5 text),
:where(.plot-d6a7b5 tspan) {
  white-space: pre;
}"""
"""What Observable Plot puts into each of its drawings: known to the policy by its hash."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="ckpt-probe {version}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<div id="page">
<noscript><p>This page is drawn by a script that it holds itself. Allow scripts to see it.</p></noscript>
</div>
<div id="announcement" class="away" role="status" aria-live="polite"></div>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def write_page(contents: Contents, path: Path, *, command: str = "", overwrite: bool = False) -> int:
    """Write the page of a report, whole or not at all; returns its size in bytes.

    Raises UsageError where the file exists and `overwrite` is not set, DataError where it cannot be written.
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
    library_versions = versions()
    libraries, program, style = _static()
    data = encoded(contents, {"command": command, "versions": library_versions})
    scripts = "\n".join(
        [*(f"<script>{library}</script>" for library in libraries), f'<script type="module">{program}</script>']
    )
    return PAGE.format(
        policy=_policy([*libraries, program], [style, PLOT_STYLE]),
        version=html.escape(library_versions["ckpt-probe"]),
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
def _static() -> tuple[list[str], str, str]:
    """Return the libraries, the program and the style of the page."""
    libraries = [_read(name) for name in LIBRARIES]
    return libraries, "".join(_read(f"{name}.js") for name in PARTS), _read("page.css")


def _read(name: str) -> str:
    # HTML normalises line ends, so the hash must be that of the normalised text.
    return (STATIC / name).read_text(encoding="utf-8").replace("\r\n", "\n")
