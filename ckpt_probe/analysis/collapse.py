"""Compute single metrics of neural collapse from features and labels; the numbers are those of `analyze_features`."""

import math
from numbers import Real

from ckpt_probe.analysis.entries import split_reasons
from ckpt_probe.analysis.record import analyze_features
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.metrics import collapse
from ckpt_probe.metrics.rows import Array
from ckpt_probe.moments import Moments
from ckpt_probe.moments.registry import COINCIDE, MEANS


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
