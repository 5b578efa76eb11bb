"""Style and saving of figures; equal drawings give equal bytes."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.errors import UsageError, listed
from ckpt_probe.files import refuse_existing, replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
DOTS_PER_INCH = 200

STYLE = Path(__file__).with_name("paper.mplstyle")
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}


def require_drawable(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError for an unknown suffix, an existing file, or missing matplotlib."""
    if _kind(path) not in FORMATS:
        raise UsageError(f"{path}: expected a name that ends in {listed([f'.{suffix}' for suffix in FORMATS])}")
    refuse_existing(path, overwrite=overwrite)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError('figures need matplotlib: pip install "ckpt-probe[figures]"') from error


@contextmanager
def drawing(
    path: Path, size: tuple[float, float], *, overwrite: bool, **changes: Any
) -> Iterator[tuple["Figure", list[str]]]:
    """Open a figure in the style of all figures, whatever the user's settings are, and save it at the end.

    The file is written atomically, in the format of its suffix.

    Args:
        path: File to write.
        size: Width and height in inches.
        overwrite: Whether to replace an existing file.
        **changes: Further settings by the names of matplotlib, with underscores for dots.

    Yields:
        The figure, and a list to which a line with the warnings of matplotlib is appended at the end, if there are any.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = dict(mpl.rc_params_from_file(STYLE, use_default_template=True))
    style |= {name.replace("_", "."): value for name, value in changes.items()}
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(style):
        warnings.simplefilter("always")
        figure = Figure(figsize=size, layout="constrained")
        yield figure, notes
        kind = _kind(path)
        with replacing(path, overwrite=overwrite) as temporary:
            figure.savefig(temporary, format=kind, metadata=METADATA[kind], dpi=DOTS_PER_INCH)
            if kind == "svg":
                temporary.write_text(slim(temporary.read_text(encoding="utf-8")), encoding="utf-8")
    messages = list(dict.fromkeys(" ".join(str(warning.message).split()).rstrip(".") for warning in caught))
    if messages:
        notes.append(f"matplotlib warns: {listed(messages, 4)}")


def slim(svg: str) -> str:
    """Shorten SVG by a sixth or more: no indentation, coordinates to a hundredth of a point."""
    coordinates = re.compile(r' (?:d|x|y)="[^"]*"')
    digits = re.compile(r"-?\d+\.\d{3,}")
    return coordinates.sub(
        lambda match: digits.sub(lambda number: f"{float(number[0]):.2f}", match[0]), re.sub(r"\n\s+", "\n", svg)
    )


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")
