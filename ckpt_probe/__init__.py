"""Read what happened inside a training run from its checkpoints.

    import ckpt_probe as cp

    cp.mir(X, Y), cp.hdr(X, Y), cp.matrix_entropy(X)    # rows are vectors, numpy or torch
    cp.analyze_features(features, labels, weights)       # a record: dotted names to numbers

Every name loads when it is first used, so that `import ckpt_probe` costs milliseconds.
"""

from typing import TYPE_CHECKING, Any

from ckpt_probe.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ckpt_probe.analysis import Comparison, Records, Settings, Similarity, analyze, analyze_features, compare
    from ckpt_probe.analysis.collapse import cdnv, nc1, nc2, nc3, nc4
    from ckpt_probe.analysis.records import read_records
    from ckpt_probe.analysis.similarity import similarity
    from ckpt_probe.checkpoints import save_checkpoint
    from ckpt_probe.config import TrainingConfig, load_config
    from ckpt_probe.errors import CkptProbeError, DataError, UsageError
    from ckpt_probe.extraction import extract, extract_series
    from ckpt_probe.findings import events
    from ckpt_probe.inspection import inspect
    from ckpt_probe.integrations import LightningProbe, Probe, RecordMetric, TrainerProbe
    from ckpt_probe.merging import average, interpolate
    from ckpt_probe.metrics import (
        alpha_req,
        effective_rank,
        erank_difference,
        gram,
        hdr,
        matrix_entropy,
        mir,
        mutual_information,
        nc5,
        participation_ratio,
        rankme,
    )
    from ckpt_probe.metrics.similarity import CKA, cka, cka_between, cka_matrix, hsic, mir_between
    from ckpt_probe.moments import Moments, difference
    from ckpt_probe.opening import load_data, open_checkpoint, open_dump
    from ckpt_probe.paths import barriers, evaluate_path
    from ckpt_probe.paths.plane import plane
    from ckpt_probe.predictions import examples, function_similarity
    from ckpt_probe.reporting.conditions import export
    from ckpt_probe.reporting.formats import to_dataframe
    from ckpt_probe.reporting.line_figure import plot
    from ckpt_probe.reporting.page import report
    from ckpt_probe.training import losses, prune, train
    from ckpt_probe.trajectories import weights

_HOMES = {
    "analysis": ("Comparison", "Records", "Settings", "Similarity", "analyze", "analyze_features", "compare"),
    "analysis.series": ("analyze_dump", "analyze_series"),
    "analysis.collapse": ("cdnv", "nc1", "nc2", "nc3", "nc4"),
    "analysis.records": ("read_records",),
    "analysis.similarity": ("similarity",),
    "checkpoints": ("save_checkpoint",),
    "config": ("TrainingConfig", "load_config"),
    "errors": ("CkptProbeError", "DataError", "UsageError"),
    "extraction": ("extract", "extract_series"),
    "findings": ("events",),
    "inspection": ("inspect",),
    "integrations": ("LightningProbe", "Probe", "RecordMetric", "TrainerProbe"),
    "merging": ("average", "interpolate"),
    "metrics": (
        "alpha_req",
        "effective_rank",
        "erank_difference",
        "gram",
        "hdr",
        "matrix_entropy",
        "mir",
        "mutual_information",
        "nc5",
        "participation_ratio",
        "rankme",
    ),
    "metrics.similarity": ("CKA", "cka", "cka_between", "cka_matrix", "hsic", "mir_between"),
    "moments": ("Moments", "difference"),
    "opening": ("load_data", "open_checkpoint", "open_dump"),
    "paths": ("barriers", "evaluate_path"),
    "paths.plane": ("evaluate_plane", "plane"),
    "predictions": ("examples", "function_similarity"),
    "reporting.conditions": ("export",),
    "reporting.formats": ("to_dataframe",),
    "reporting.line_figure": ("plot",),
    "reporting.page": ("report",),
    "training": ("prune", "train"),
    "training.losses": ("losses",),
    "trajectories": ("weights",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CKA",
    "CkptProbeError",
    "Comparison",
    "DataError",
    "LightningProbe",
    "Moments",
    "Probe",
    "RecordMetric",
    "Records",
    "Settings",
    "Similarity",
    "TrainerProbe",
    "TrainingConfig",
    "UsageError",
    "alpha_req",
    "analyze",
    "analyze_features",
    "average",
    "barriers",
    "cdnv",
    "cka",
    "cka_between",
    "cka_matrix",
    "compare",
    "difference",
    "effective_rank",
    "erank_difference",
    "evaluate_path",
    "events",
    "examples",
    "export",
    "extract",
    "extract_series",
    "function_similarity",
    "gram",
    "hdr",
    "hsic",
    "inspect",
    "interpolate",
    "load_config",
    "load_data",
    "losses",
    "matrix_entropy",
    "mir",
    "mir_between",
    "mutual_information",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "nc5",
    "open_checkpoint",
    "open_dump",
    "participation_ratio",
    "plane",
    "plot",
    "prune",
    "rankme",
    "read_records",
    "report",
    "save_checkpoint",
    "similarity",
    "to_dataframe",
    "train",
    "weights",
]


_load = lazy_names(__name__, _HOME_OF)


def __getattr__(name: str) -> Any:
    """Load a public name, which raises UsageError for unknown keywords."""
    value = _load(name)
    from ckpt_probe.keywords import checked_keywords

    globals()[name] = value = checked_keywords(value, __name__)
    return value


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
