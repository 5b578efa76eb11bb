"""Names of metrics: those that records have, that a family has, that packages register; patterns and suggestions.

Numbers that no family of metrics computes are listed here too: barriers of paths, comparisons of predictions, columns
of `--per-class`, and numbers of the weights of a series.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ckpt_probe.errors import UsageError, listed
from ckpt_probe.keywords import as_sequence, matching, suggestion
from ckpt_probe.metrics.collapse import simplex_exists
from ckpt_probe.moments import registry
from ckpt_probe.moments.registry import GALANTI, MEANS, PAPYAN, SECOND_PASS, SERIES, SONG, UNIT_ROWS, Metric
from ckpt_probe.plugins import registered

ENTRY_POINTS = "ckpt_probe.metrics"

ENTEZARI, FRANKLE = "Entezari et al. 2022", "Frankle et al. 2020"
CLAUSET, ANTOGNINI = "Clauset, Shalizi and Newman 2009", "Antognini and Sohl-Dickstein 2018"
PENNINGTON = "Marchenko and Pastur 1967"

# fmt: off
BARRIERS = (
    Metric("barrier.loss", "barrier.loss", "largest rise of the loss above the chord between both ends", "",
           unit="nats", direction="down", source=ENTEZARI),
    Metric("barrier.loss_over_mean", "barrier.loss_over_mean", "largest loss minus the mean of both ends", "",
           unit="nats", direction="down", source=FRANKLE),
    Metric("barrier.error", "barrier.error", "largest rise of the error above the chord between both ends", "",
           direction="down", source=ENTEZARI),
    Metric("barrier.error_over_mean", "barrier.error_over_mean", "largest error minus the mean of both ends", "",
           direction="down", source=FRANKLE),
)
PREDICTION_METRICS = (
    Metric("function.disagreement", "disagreement", "share of rows predicted otherwise than at the checkpoint before",
           "function", requires=(SERIES,), source="Milani Fard et al. 2016"),
    Metric("function.divergence", "JS divergence", "mean Jensen–Shannon divergence of the softmax from the checkpoint "
           "before", "function", requires=(SERIES,), unit="nats", source="Lin 1991"),
    Metric("function.error_agreement", "error agreement", "share of the rows that are wrong here and at the checkpoint "
           "before in which both predict one wrong class", "function", requires=(SERIES,)),
    Metric("function.learned", "learned", "share of rows that were wrong at the checkpoint before and are right",
           "function", requires=(SERIES,), direction="up"),
    Metric("function.forgotten", "forgotten", "share of rows that were right at the checkpoint before and are wrong",
           "function", requires=(SERIES,), direction="down", source="Toneva et al. 2019"),
)
CLASS_METRICS = (
    Metric("samples", "samples", "samples of the class", "", 1),
    Metric("mean_norm", "‖mean‖", "norm of the class mean", "", 2),
    Metric("variance", "variance", "mean ‖z − μ_c‖² in the class", "", 3, None, (MEANS,), "", "down", 0.0, GALANTI),
    Metric("within.entropy", "H within", "entropy of the class's own rows", "", 4,
           None, (UNIT_ROWS,), "nats", "down", 0.0, SONG),
    Metric("nearest.own", "own mean", "share of samples nearest to their own class mean", "", 5,
           None, (SECOND_PASS,), "", "up", 1.0, PAPYAN),
    Metric("nearest.confusion", "nearest means", "class:samples nearest to its mean, most first", "", 6,
           None, (SECOND_PASS,), source=PAPYAN),
)
# fmt: on

# Each entry: name, label, meaning, source.
_OF_WEIGHTS = (
    ("audit.turn_ratio", "turn", "length of the way through the checkpoint, relative to the way past it", ""),
    ("spectrum.alpha", "α", "exponent of the power law of the largest eigenvalues; mean over matrices", CLAUSET),
    ("spectrum.alpha_stderr", "± α", "standard error of the exponent", CLAUSET),
    ("motion.step", "step size", "distance from the checkpoint before", ""),
    ("motion.from_first", "from first", "distance from the first checkpoint, relative to its norm", ""),
    ("motion.cosine", "cosine", "cosine of the displacements since the last and the last but one checkpoint", ""),
    ("motion.norm", "‖θ‖", "norm of the weights", ""),
    ("motion.sign_changes", "signs", "share of entries whose sign changed since the checkpoint before", ""),
    ("motion.path_ratio", "path ratio", "length of the way so far, relative to the distance from the first", ""),
    ("spectrum.stable_rank", "stable rank", "squared Frobenius norm by squared spectral norm; mean over matrices", ""),
    ("spectrum.norm", "‖W‖₂", "spectral norm; the largest of the matrices", ""),
    ("spectrum.spikes", "spikes", "number of eigenvalues beyond the edge of a random matrix", PENNINGTON),
    ("spectrum.spike_share", "spike share", "their share of the squared norm; mean over matrices", PENNINGTON),
    ("spectrum.effective_rank", "erank", "exponential of the entropy of the eigenvalues; mean over matrices", ""),
    ("spectrum.mean_log", "mean log λ", "mean logarithm of the eigenvalues; mean over matrices", ""),
    ("spectrum.tail", "tail", "number of eigenvalues in the tail", CLAUSET),
    ("spectrum.alpha_distance", "distance", "Kolmogorov distance between the tail and its power law", CLAUSET),
    ("spectrum.alpha_p", "p", "goodness of fit of the power law", CLAUSET),
    ("spectrum.change_spikes", "Δ spikes", "spikes of the change since the first checkpoint", PENNINGTON),
    ("spectrum.change_spike_share", "Δ share", "share of those spikes of its squared norm", PENNINGTON),
    ("audit.unchanged", "unchanged", "number of tensors that equal those of the checkpoint before", ""),
    ("audit.nan", "NaN", "number of NaN", ""),
    ("audit.inf", "inf", "number of infinite entries", ""),
    ("motion.path", "path", "length of the way so far", ""),
    ("motion.pca_1", "PC 1", "position along the first main direction of the trajectory", ANTOGNINI),
    ("motion.pca_2", "PC 2", "position along the second main direction", ANTOGNINI),
    ("motion.pca_share_1", "PC 1 share", "share of variance of the first main direction", ANTOGNINI),
    ("motion.pca_share_2", "PC 2 share", "share of variance of the second main direction", ANTOGNINI),
    ("motion.walk_share_1", "walk 1", "share of the first main direction of a random walk of equal length", ANTOGNINI),
    ("motion.walk_share_2", "walk 2", "share of its second main direction", ANTOGNINI),
)


@cache
def weight_metrics() -> tuple[Metric, ...]:
    """Return the numbers of the weights of a series, in the order in which a narrow table keeps its columns."""
    return tuple(
        Metric(name, label, meaning, name.partition(".")[0], priority, requires=(), source=source)
        for priority, (name, label, meaning, source) in enumerate(_OF_WEIGHTS, 1)
    )


def metric_named(name: str) -> Metric | None:
    """Return the metric of a name in a record, such as `class.mir` or `renyi_2.class.mir`; None if unknown.

    At collapse the entropies of a simplex are equal at every order; the entropy of the joint matrix, and MIR, are not.
    """
    known = _by_name(tuple(sys.path))
    if name in known:
        return known[name]
    order = re.fullmatch(r"renyi_([^.]+(?:\.\d+)?)\.(.+)", name)
    metric = known.get(order[2]) if order else None
    if order is None or metric is None or metric.family not in {"class", "sample", "within"}:
        return None
    at_collapse = None if metric.at_collapse == "reference.mir" else metric.at_collapse
    return replace(metric, name=name, label=f"{metric.label} α={order[1]}", at_collapse=at_collapse, priority=1000)


def metrics_in(records: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics that at least one record has, in the order of tables; those of Rényi orders come last."""
    names = dict.fromkeys(name for record in records for name in record)
    known = CLASS_METRICS if "class" in names else (*weight_metrics(), *all_metrics())
    metrics = [metric for metric in known if metric.name in names]
    present = {metric.name for metric in metrics}
    others = [metric_named(name) for name in names if name.startswith("renyi_")]
    return [*metrics, *(metric for metric in others if metric is not None and metric.name not in present)]


def values_at_collapse(metric: Metric, records: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Return the distinct values at collapse of a metric over the records that have it; None for an undefined one."""
    values = (_value_at_collapse(metric, record) for record in records if record.get(metric.name) is not None)
    return list(dict.fromkeys(values))


def _value_at_collapse(metric: Metric, record: Mapping[str, Any]) -> float | None:
    classes, features = record.get("classes"), record.get("features")
    # Records of earlier versions contain the values of a simplex that does not exist.
    left = None if classes is None else classes - (record.get("classes_left_out") or 0)
    if metric.of_simplex and left is not None and not simplex_exists(left, features):
        return None
    return record.get(metric.at_collapse) if isinstance(metric.at_collapse, str) else metric.at_collapse


def all_metrics() -> tuple[Metric, ...]:
    """Return the builtin metrics and those that installed packages register."""
    return (*registry.METRICS, *_installed(tuple(sys.path))[0])


def package_functions() -> dict[str, Callable[..., Mapping[str, float]]]:
    """Return the functions that installed packages register, each of which computes the metrics of one family."""
    return _installed(tuple(sys.path))[1]


def family_names() -> tuple[str, ...]:
    """Return the names of all families, those of installed packages last."""
    metrics, functions = _installed(tuple(sys.path))
    builtin = [family.name for family in registry.FAMILIES]
    return tuple(dict.fromkeys([*builtin, *(metric.family for metric in metrics), *functions]))


def find_metrics(names: str | Iterable[str], known: Iterable[str] | None = None) -> list[str]:
    """Return the full names of metrics, ignoring case: "MIR" is `class.mir`, and "nc1.*" every metric of NC1.

    Args:
        names: Names, short labels of tables, or patterns; a single text may have several separated by commas.
        known: Names to choose from, such as those in records; the registered ones if None.

    Returns:
        The names without repetition. A name that is neither a metric nor a label is returned unchanged.
    """
    known = [metric.name for metric in all_metrics()] if known is None else list(known)
    labels = {metric.label: metric.name for metric in (*weight_metrics(), *all_metrics())}
    texts = _separated(names, known)
    return list(dict.fromkeys(name for text in texts for name in matching(text, known, labels) or [text]))


def _separated(names: str | Iterable[str], known: Collection[str]) -> list[str]:
    """Return names of which a single text may have several separated by commas, unless it is a known one itself."""
    texts = map(str, as_sequence(names) or ())
    parts = (part for text in texts for part in ([text] if text in known else text.split(",")))
    return [part.strip() for part in parts if part.strip()]


def suggest_metrics(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the nearest metrics or labels, or the first known metrics if none is near."""
    known = list(known)
    labels = [metric.label for metric in all_metrics() if metric.name in known]
    return suggestion(name, [*known, *labels]) or f"; there are: {listed(known)}"


def chosen_families(names: str | Iterable[str] | None) -> frozenset[str]:
    """Return the families of some metrics, or the default families and those of installed packages for None.

    Args:
        names: Names of families or metrics, labels or patterns (see `find_metrics`), ignoring case.

    Raises:
        UsageError: If a name is unknown, or there is no name.
    """
    known = family_names()
    if names is None:
        return frozenset(known) - {family.name for family in registry.FAMILIES if family.on_request}
    if isinstance(names, Collection) and not isinstance(names, str) and names and set(names) <= set(known):
        return frozenset(names)
    names = _separated(names, known)
    family_of = {metric.name: metric.family for metric in all_metrics()}
    families: set[str] = set()
    for name in names:
        chosen = matching(name, [*registry.GROUPS, *known])
        metrics = [] if chosen else [metric for metric in find_metrics(name) if metric in family_of]
        if not chosen and not metrics:
            candidates = [*registry.GROUPS, *known, *family_of, *(metric.label for metric in all_metrics())]
            hint = suggestion(name, candidates) or f"; families: {', '.join([*registry.GROUPS, *known])}"
            raise UsageError(f"`only`: {name!r} is neither a metric nor a family of metrics{hint}")
        families.update(family for group in chosen for family in registry.GROUPS.get(group, (group,)))
        families.update(family_of[metric] for metric in metrics)
    if not families:
        raise UsageError(f"`only`: expected at least one family of metrics: {', '.join([*registry.GROUPS, *known])}")
    return frozenset(families)


def requirements(families: Iterable[str]) -> frozenset[str]:
    """Return the requirements of all metrics of some families."""
    families = set(families)
    return frozenset().union(*(metric.requires for metric in all_metrics() if metric.family in families))


@cache
def _installed(path: tuple[str, ...]) -> tuple[tuple[Metric, ...], dict[str, Callable[..., Mapping[str, float]]]]:
    """Return the metrics and the functions that packages on the import path register."""
    metrics: list[Metric] = []
    functions = {}
    for name, entry in registered(ENTRY_POINTS).items():
        if isinstance(entry, Metric):
            metrics.append(entry)
        elif callable(entry):
            functions[name] = entry
        else:
            metrics += entry
    return tuple(metrics), functions


@cache
def _by_name(path: tuple[str, ...]) -> dict[str, Metric]:
    """Return the builtin metrics and those that packages on the import path register, by name."""
    return {
        metric.name: metric
        for metric in (*registry.METRICS, *BARRIERS, *PREDICTION_METRICS, *weight_metrics(), *_installed(path)[0])
    }
