"""Read what happened inside a training run from its checkpoints.

    import ckpt_probe as cp

    cp.mir(X, Y), cp.hdr(X, Y), cp.matrix_entropy(X)    # rows are vectors, numpy or torch
    cp.analyze_features(features, labels, weights)       # a record: dotted names to numbers

Every name loads when it is first used, so that `import ckpt_probe` costs milliseconds.
"""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckpt_probe.analysis import (
        Records,
        analyze,
        analyze_features,
        compare,
        read_records,
    )
    from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
    from ckpt_probe.dumps import open_dump
    from ckpt_probe.errors import CkptProbeError, DataError, UsageError
    from ckpt_probe.extraction import extract, extract_series
    from ckpt_probe.integrations import Probe
    from ckpt_probe.merging import average, interpolate
    from ckpt_probe.metrics import (
        effective_rank,
        erank_difference,
        gram,
        hdr,
        matrix_entropy,
        mir,
        mutual_information,
        nc5,
        similarity,
    )
    from ckpt_probe.moments import Moments
    from ckpt_probe.paths import evaluate_path, evaluate_plane
    from ckpt_probe.reporting import to_dataframe
    from ckpt_probe.training import losses, prune, train

_HOMES = {
    "analysis": ("Records", "analyze", "analyze_features", "analyze", "compare", "read_records"),
    "checkpoints": ("open_checkpoint", "save_checkpoint"),
    "dumps": ("open_dump",),
    "errors": ("CkptProbeError", "DataError", "UsageError"),
    "extraction": ("extract", "extract_series"),
    "integrations": ("Probe",),
    "merging": ("average", "interpolate"),
    "metrics": (
        "effective_rank",
        "erank_difference",
        "gram",
        "hdr",
        "matrix_entropy",
        "mir",
        "mutual_information",
        "nc5",
    ),
    "metrics.similarity": ("similarity",),
    "moments": ("Moments",),
    "paths": ("evaluate_path", "evaluate_plane"),
    "reporting": ("to_dataframe",),
    "training": ("prune", "train"),
    "training.losses": ("losses",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CkptProbeError",
    "DataError",
    "Moments",
    "Probe",
    "Records",
    "UsageError",
    "analyze",
    "analyze",
    "analyze_features",
    "average",
    "compare",
    "effective_rank",
    "erank_difference",
    "evaluate_path",
    "evaluate_plane",
    "extract",
    "extract_series",
    "gram",
    "hdr",
    "interpolate",
    "losses",
    "matrix_entropy",
    "mir",
    "mutual_information",
    "nc5",
    "open_checkpoint",
    "open_dump",
    "prune",
    "read_records",
    "save_checkpoint",
    "similarity",
    "to_dataframe",
    "train",
]


__getattr__ = lazy_names(__name__, _HOME_OF)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
