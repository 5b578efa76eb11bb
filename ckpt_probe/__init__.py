"""Read what happened inside a training run from its checkpoints.

    import ckpt_probe as cp

    cp.mir(X, Y), cp.hdr(X, Y), cp.matrix_entropy(X)    # rows are vectors, numpy or torch
    cp.analyze_features(features, labels, weights)       # a record: dotted names to numbers

The public names are listed in `__init__.pyi`, for type checkers and for this module. Every name loads when it is first
used, so that `import ckpt_probe` costs milliseconds.
"""

from typing import Any

from ckpt_probe.lazy import lazy_names

__version__ = "0.1.0"

with open(f"{__file__}i", encoding="utf-8") as _stub:  # noqa: PTH123 - pathlib takes longer to load than this package
    _IMPORTS = [line.split() for line in _stub if line.startswith("from ")]
_HOME_OF = {name: home.removeprefix("ckpt_probe.") for _, home, _, name, *_ in _IMPORTS}
_EARLIER_NAMES = {
    "analyze_dump": "analysis.series",
    "analyze_series": "analysis.series",
    "evaluate_plane": "paths.plane",
}

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]

_load = lazy_names(__name__, _HOME_OF | _EARLIER_NAMES)


def __getattr__(name: str) -> Any:
    """Load a public name, which raises UsageError for unknown keywords."""
    value = _load(name)
    from ckpt_probe.keywords import checked_keywords

    globals()[name] = value = checked_keywords(value, __name__)
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
