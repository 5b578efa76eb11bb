"""Compute the record, or single metrics of neural collapse, of features and labels in memory."""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

from torch import Tensor

from ckpt_probe.analysis.entries import Record, split_reasons
from ckpt_probe.analysis.record import Block, compute_from_blocks
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import from_arguments
from ckpt_probe.metrics import collapse
from ckpt_probe.metrics.rows import Array, as_tensor
from ckpt_probe.metrics.stochastic import MOST
from ckpt_probe.moments import MEMORY, Moments
from ckpt_probe.moments.class_sums import rows_at_once
from ckpt_probe.moments.errors.design import RecordWithErrors
from ckpt_probe.moments.registry import COINCIDE, MEANS

ROWS_AT_ONCE = 8192
MANY_CLASSES = 1000
"""Number of classes from which a block of `ROWS_AT_ONCE` rows would have few rows per class."""


def analyze_features(
    features: Array,
    labels: Array,
    weights: Array | None = None,
    bias: Array | None = None,
    *,
    logits: Array | None = None,
    only: str | Iterable[str] | None = None,
    centred: bool = False,
    errors: bool = False,
    orders: float | Sequence[float] = (),
    min_samples: int = 1,
    tolerance: float = 1e-3,
    budget: float | None = None,
    seed: int = 0,
    probes: int = MOST,
    exact_limit: int | None = None,
    precision: str = "float64",
    memory: int = MEMORY,
) -> Record:
    """Compute the record of features, labels and a classifier; numpy or torch.

    Args:
        features: Features of the samples, shape (N, D).
        labels: Classes of the samples, shape (N,), whole numbers from 0.
        weights: Classifier weights, shape (C, D). Without weights and logits, C is the highest label plus 1.
        bias: Classifier bias, shape (C,).
        logits: Logits of the samples, shape (N, C); computed from `weights` and `bias` if None.
        only: Metrics, families of metrics or patterns to compute, such as "nc,class" or ("MIR", "nc1.*"); the usual
            ones if None.
        centred: Whether to compute MIR, HDR and effective rank also of features minus their mean.
        errors: Whether to add the standard error `NAME_stderr` and the bias `NAME_bias` of each metric; rows count as
            independent.
        orders: Rényi orders of entropies that are computed beside those of order 1, such as (0.5, 2).
        min_samples: Smallest number of samples of a class that enters metrics of class means.
        tolerance: Relative standard error of MIR at which sampling stops.
        budget: Seconds after which sampling stops; no limit if None.
        seed: Seed of the sampling.
        probes: Largest number of probes of the sampling.
        exact_limit: Largest side of a joint matrix that is solved exactly; larger ones are sampled. 12,000, or as
            `memory` allows, if None.
        precision: "float64", or "float32" for products of rows in single precision (about six digits).
        memory: Largest size of moments and matrices in bytes.

    Returns:
        Values by name, entropies in nats. A value that is undefined or not finite is None, with the reason in
        `missing`.

    Raises:
        DataError: If features are NaN or infinite, a label is outside 0 … C−1, shapes do not match, or, with C unknown,
            the class means would take more than `memory` bytes.
        UsageError: If an argument is invalid.
    """
    settings = from_arguments(Settings, locals())
    # Arrays in files are read in parts; lists have no shape.
    features = as_tensor(features, "features") if isinstance(features, list | tuple | Tensor) else features
    for name, values in (("features", features), ("labels", labels), ("logits", logits)):
        optional = name == "logits" and values is None
        if not (optional or isinstance(values, list | tuple) or getattr(values, "shape", ())):
            raise DataError(f"{name}: expected an array with a row for each sample, found {values!r}")
    logits = as_tensor(logits, "logits") if isinstance(logits, list | tuple) else logits
    if logits is not None and len(logits) != len(features):
        raise DataError(f"{len(features)} rows of features but {len(logits)} rows of logits")
    if len(features) != len(labels):
        raise DataError(f"{len(features)} rows of features but {len(labels)} labels")
    rows = ROWS_AT_ONCE
    if weights is not None and features.ndim == 2 and len(weights) > MANY_CLASSES:
        rows = max(rows, rows_at_once(features.shape[1], len(weights)))

    def blocks() -> Iterable[Block]:
        for start in range(0, len(features), rows):
            part = slice(start, start + rows)
            yield features[part], labels[part], None if logits is None else logits[part]

    detailed = compute_from_blocks(blocks, weights, bias, settings)
    return RecordWithErrors(detailed.record, detailed.influences) if errors else detailed.record


def nc1(features: Array, labels: Array) -> float:
    """Compute NC1, tr(Σ_W Σ_B⁺)/C: the spread within classes relative to that between their means; 0 at collapse.

    Papyan, Han and Donoho 2020.

    Args:
        features: Features of the samples, shape (N, D), numpy or torch.
        labels: Classes of the samples, shape (N,), whole numbers from 0.

    Raises:
        DataError: If the class means coincide, a value is not finite, or shapes do not match.
    """
    return _value("nc1.pinv", features, labels)


def cdnv(features: Array, labels: Array, *, dist_exp: float = 1.0) -> float:
    """Compute CDNV, the mean over pairs of (v_c + v_c') / (2 ‖μ_c − μ_c'‖²), v_c = mean ‖z − μ_c‖²; 0 at collapse.

    Galanti et al. 2021. Only with `dist_exp=1` the value does not depend on the scale of the features.

    Args:
        features: Features of the samples, shape (N, D), numpy or torch.
        labels: Classes of the samples, shape (N,), whole numbers from 0.
        dist_exp: Power of the squared distance; 2 divides by ‖μ_c − μ_c'‖⁴, as Wu and Papyan 2024 do in places.

    Raises:
        DataError: If two class means coincide, a value is not finite, or shapes do not match; or if the result is
            beyond the range of float64.
        UsageError: If `dist_exp` is not a finite number.
    """
    if not isinstance(dist_exp, Real) or not math.isfinite(dist_exp):
        raise UsageError(f"`dist_exp={dist_exp!r}`: expected a finite number")
    moments = Moments(only=["nc1"])
    moments.update(features, labels)
    inputs = moments.inputs()
    if MEANS in inputs.unavailable:
        raise DataError(f"nc1.cdnv: {inputs.unavailable[MEANS]}")
    value = collapse.cdnv(inputs.variances, inputs.class_means, dist_exp=dist_exp)
    if value is None:
        raise DataError(f"nc1.cdnv: {COINCIDE}")
    try:
        return float(value) * inputs.scatter.unit ** (2 - 2 * dist_exp)
    except OverflowError:
        raise DataError(
            f"nc1.cdnv: the value is beyond the range of float64 with `dist_exp={dist_exp!r}`; scale the features"
        ) from None


def nc2(features: Array, labels: Array) -> float:
    """Compute NC2, the distance of the Gram matrix of centred class means from that of a simplex ETF; 0 at collapse.

    Args:
        features: Features of the samples, shape (N, D), numpy or torch.
        labels: Classes of the samples, shape (N,), whole numbers from 0.

    Raises:
        DataError: If the class means coincide, a value is not finite, or shapes do not match.
    """
    return _value("nc2.etf", features, labels)


def nc3(features: Array, labels: Array, weights: Array) -> float:
    """Compute NC3, ‖W/‖W‖_F − M/‖M‖_F‖_F for classifier weights W and centred class means M; 0 at collapse.

    Args:
        features: Features of the samples, shape (N, D), numpy or torch.
        labels: Classes of the samples, shape (N,), whole numbers from 0.
        weights: Classifier weights, shape (C, D).

    Raises:
        DataError: If the class means coincide, all weights are zero, a value is not finite, or shapes do not match.
    """
    return _value("nc3.duality", features, labels, weights)


def nc4(features: Array, labels: Array, weights: Array, bias: Array | None = None) -> float:
    """Compute NC4, the share of samples whose predicted class is not that of the nearest class mean; 0 at collapse.

    Args:
        features: Features of the samples, shape (N, D), numpy or torch.
        labels: Classes of the samples, shape (N,), whole numbers from 0.
        weights: Classifier weights, shape (C, D).
        bias: Classifier bias, shape (C,).

    Raises:
        DataError: If a value is not finite, or shapes do not match.
    """
    return _value("nc4.disagreement", features, labels, weights, bias)


def _value(
    metric: str, features: Array, labels: Array, weights: Array | None = None, bias: Array | None = None
) -> float:
    record = analyze_features(features, labels, weights, bias, only=metric.partition(".")[0])
    if record[metric] is None:
        reasons = [reason for names, reason in split_reasons(record) if reason and metric in names]
        reason = reasons[0] if reasons else record["missing"]
        raise DataError(f"{metric}: {reason}")
    return record[metric]
