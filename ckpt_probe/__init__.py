"""Read what happened inside a training run from its checkpoints.

    import ckpt_probe as cp

    cp.mir(X, Y), cp.hdr(X, Y), cp.matrix_entropy(X)    # rows are vectors, numpy or torch
    cp.analyze_features(features, labels, weights)       # a record: dotted names to numbers

The public names are listed in `__init__.pyi`. Each loads when it is first used, so that `import ckpt_probe` costs
milliseconds.
"""

from typing import Any

from ckpt_probe.lazy import lazy_names

__version__ = "0.1.0"

__all__, _load = lazy_names(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    __file__,
    analyze_dump="ckpt_probe.analysis.series",
    analyze_series="ckpt_probe.analysis.series",
    evaluate_plane="ckpt_probe.paths.plane",
)


def __getattr__(name: str) -> Any:
    """Load a public name, which raises UsageError for unknown keywords."""
    value = _load(name)
    from ckpt_probe.keywords import checked_keywords

    globals()[name] = value = checked_keywords(value, __name__)
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
