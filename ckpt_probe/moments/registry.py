"""Registry of metrics. Records, tables, the report page, `--list-metrics` and the documentation read its entries.

To add a metric, add one `Metric` to `METRICS`. A package adds its own by entry points of the group
`ckpt_probe.metrics`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import collapse, covariance
from ckpt_probe.moments.documents import CENTRED as CENTRED_ENTROPY
from ckpt_probe.moments.documents import REASONS

if TYPE_CHECKING:
    from ckpt_probe.moments.documents import DocumentNumbers
    from ckpt_probe.moments.inputs import Inputs

INFINITE_LOGITS = "not finite, because logits are infinite or NaN"
"""Reason for a missing loss."""

SONG = "Song et al., arXiv 2409.16767"
PAPYAN = "Papyan, Han and Donoho 2020"
GALANTI = "Galanti et al. 2021"
ROY = "Roy and Vetterli 2007"
SKEAN = "Skean et al. 2025"
HE_SU = "He and Su 2023"
LIU = "Liu et al. 2023"
WU = "Wu and Papyan 2024"
WEI = "Wei et al. 2024"
AMMAR = "Ammar et al. 2024"
TIRER = "Tirer et al. 2023"
ZHU = "Zhu et al. 2021"
GARRIDO = "Garrido et al. 2023"
AGRAWAL = "Agrawal et al. 2022"
GUO = "Guo et al. 2017"
GAO = "Gao and Ganguli 2015"
HOSSEINI = "Hosseini and Fedorenko 2023"

TOWARD = "toward reference"

MEANS, WEIGHTS, SCATTER, UNIT_ROWS = "class means", "classifier weights", "within-class scatter", "unit rows"
LOGITS, SECOND_PASS, CENTRED, OUTSIDE = "logits", "second pass", "centred features", "outside data"
LAYERS, SERIES = "several layers", "series of dumps"
DOCUMENTS, REFERENCE, TRAIN_MEANS = "documents", "reference dump", "training means"
"""Requirements of metrics.

Class means are always accumulated; the within-class scatter and the unit rows only if a metric requires them.
Predictions with losses can replace logits. The second pass goes over the features once the class means are known;
centred features take two more passes. Outside data are of classes that were not trained on. Documents are groups of
rows that depend on each other, such as the positions of a text. Training means are those of the training split.
"""

COMPUTING_ERROR = "sample.mir_computing_error"

FROM_MOMENTS = frozenset({MEANS, WEIGHTS, SCATTER, UNIT_ROWS})
"""Requirements that class moments and classifier weights fulfil."""


class Undefined(Exception):
    """Raised by the function of a metric that has no value; the text is the reason, for `missing` in the record."""


@dataclass(frozen=True)
class Family:
    """Describes metrics that are computed together.

    Attributes:
        name: Name, for `only`.
        meaning: Description of one line.
        cost: Multiplications for N rows of D features and C classes.
        group: Title of the group of plots on the report page.
        on_request: Whether the family is computed only if it is requested.
        any_layer: Whether the family applies to layers before the penultimate one.
    """

    name: str
    meaning: str
    cost: str
    group: str
    on_request: bool = False
    any_layer: bool = False


@dataclass(frozen=True)
class Metric:
    """Describes and computes one metric of a record.

    Attributes:
        name: Dotted name in the record.
        label: Short label for tables.
        meaning: Description of one line.
        family: Name of the family of metrics to which it belongs.
        function: Returns the value for `inputs`, or None, or raises `Undefined` with the reason for its absence. None
            if the only one of the inputs is the value.
        requires: Requirements, such as `MEANS` or `UNIT_ROWS`.
        unit: Unit, empty for a plain number.
        direction: "up", "down", "toward reference", or empty if neither is better.
        at_collapse: Value at neural collapse, or the name of that value in the record; None if unknown.
        source: Publication that defines the metric.
        priority: Metrics with lower numbers keep their column longer in a narrow terminal.
        all_orders: Whether the metric exists for every Rényi order.
        of_simplex: Whether the value at collapse exists only if the classes can form a simplex (C ≤ D + 1).
        of_weights: Whether only records of classifier weights alone have the metric.
        inputs: Names of attributes of `Inputs`, or attributes and entries of these, such as "class_level.values.mir",
            which are the arguments of `function`. Of values by order of the entropy it is that of the order. Without
            names the argument is `Inputs`, and with `all_orders` the second one the order. A metric without function
            and inputs compares several records, or only classifier weights determine it.
        absent: Reason for the absence of a value that is None.
        of_rows: Whether the value is the mean of a value of each row, from which its error follows.
    """

    name: str
    label: str
    meaning: str
    family: str
    priority: int = 100
    function: Callable[..., float | Tensor | None] | None = None
    requires: tuple[str, ...] = (MEANS,)
    unit: str = ""
    direction: str = ""
    at_collapse: str | float | None = None
    source: str = ""
    all_orders: bool = False
    of_simplex: bool = False
    of_weights: bool = False
    inputs: tuple[str, ...] = ()
    absent: str = ""
    of_rows: bool = False


SAMPLED = "sampled with an error bar if that side exceeds 12,000 or the memory budget"
COLLAPSE, SAMPLES = "Neural collapse", "Samples"
FAMILIES = (
    Family("quality", "accuracy, loss and calibration", "N·C·D; none if logits or predictions are stored", "Fit"),
    Family(
        "class",
        "entropies, MIR and HDR of class means and weights",
        f"N·D + C·D·min(C, D); joint entropy: a side of min(C, D·min(C, D)), cubed, {SAMPLED}",
        "Class means and classifier",
    ),
    Family("nc1", "NC1, CDNV and separation", "N·D² + C·D·min(C, D) + C²·D/2", COLLAPSE, any_layer=True),
    Family(
        "nc2", "NC2, and its generalisation to more classes than dimensions", "N·D + C²·D", COLLAPSE, any_layer=True
    ),
    Family("nc3", "NC3, its uniformity and its distance from a simplex", "N·D + C·D·min(C, D)", COLLAPSE),
    Family(
        "nc4",
        "NC4 and nearest class means",
        "N·C·D in a second pass; twice if no predictions are known",
        COLLAPSE,
        any_layer=True,
    ),
    Family("within", "entropy of the rows of each class", "N·D² + C·D³ at most", "Within classes", any_layer=True),
    Family(
        "sample",
        "entropies, MIR and HDR of the features of all samples and the weight rows of their labels",
        f"N·D² + D³; joint entropy: a side of min(N, D·min(C, D)), cubed, {SAMPLED}",
        SAMPLES,
        any_layer=True,
    ),
    Family(
        "spectrum", "RankMe, α-ReQ and participation ratio of rows as they are", "N·D² + D³", SAMPLES, any_layer=True
    ),
    Family("centred", "sample level of features minus their mean", "that of sample, in two more passes", SAMPLES, True),
    Family("nc5", "class means compared with data of other classes", "N·D + C·D", COLLAPSE, True),
    Family(
        "documents",
        "entropy, curvature and effective rank of the rows of each document",
        "N·D·min(T, D) for documents of T rows; only of data with documents",
        "Documents",
        any_layer=True,
    ),
)
GROUPS = {"nc": ("nc1", "nc2", "nc3", "nc4")}
"""Short names for several families."""

DEFAULT = tuple(family.name for family in FAMILIES if not family.on_request)
"""Families that are computed if none are named."""


COINCIDE = "class means coincide"
SAME_DIRECTION = "two class means have the same direction"
CENTRAL_MEAN = "a class mean equals the mean of the class means"
ALL_ZERO = "all classifier weights are zero"
ZERO_WEIGHTS = "a row of classifier weights has zero length"
NO_SCORES = "neither logits nor classifier weights"
NO_CONFIDENCE = "largest probabilities are unknown: earlier versions stored predictions and losses alone; extract again"
INFINITE_CONFIDENCE = "some probabilities are not finite"
FEW_SAMPLES = "no class has as many samples as a class needs"
NO_ANGLE = "the class means are orthogonal to the classifier weights, or one of them is zero"
ZERO_LENGTH = "a class mean or a row of classifier weights has zero length"
NO_SPREAD = "samples do not differ within their classes"


def _of_predictions(value: float | None, unpredicted: int) -> float | None:
    """Return a share of rows, which is undefined if a row has no prediction."""
    if unpredicted:
        raise Undefined(f"{unpredicted} rows have no prediction, because logits are NaN or all −∞")
    return value


def _loss(loss: float | None, samples: int) -> float | None:
    if not samples:
        raise Undefined(NO_SCORES)
    return loss


def _calibration(error: float | None, loss: float | None, samples: int) -> float:
    if error is None:
        raise Undefined(NO_SCORES if not samples else NO_CONFIDENCE if loss is not None else INFINITE_CONFIDENCE)
    return error


def _normalized(entropy: Tensor, samples: int, left_out: int, features: int) -> Tensor:
    side = min(samples - left_out, features)
    if side < 2:
        raise Undefined("one sample or one feature has one direction")
    return entropy / math.log(side)


def _outside_cosine(inputs: "Inputs", *, centred: bool = False) -> float | Tensor:
    assert inputs.outside_mean is not None
    if not len(inputs.present):
        raise Undefined(FEW_SAMPLES)
    means = (inputs.class_means * inputs.scatter.unit).cpu()
    try:
        return collapse.nc5(means, inputs.outside_mean, centred=centred, samples=inputs.samples)
    except DataError as error:
        raise Undefined(str(error).removeprefix("nc5: ")) from error


def _rank_difference(entropy: float, reference: "DocumentNumbers") -> float | None:
    rank = reference.effective_rank()
    return None if rank is None else rank - math.exp(entropy)


_OF_MEANS, _OF_BOTH, _OF_SCATTER = (MEANS,), (MEANS, WEIGHTS), (MEANS, SCATTER)
_OF_ROWS, _OF_PAIRS, _OF_SPECTRUM = (UNIT_ROWS,), (UNIT_ROWS, WEIGHTS), (SCATTER,)
_MIR, _HDR, _ENTROPY, _UNIFORMITY = "reference.mir", "reference.hdr", "reference.entropy", "reference.uniformity"

REFERENCES = {"class": (_MIR, _HDR, _ENTROPY), "nc2": (_UNIFORMITY,)}
"""Names of the values at neural collapse that a record has for each family."""

# Each entry: name, label, meaning, family, priority,
#             function, requirements, unit, direction, value at collapse, source, inputs.
# fmt: off
METRICS = (
    Metric("accuracy", "acc", "share of samples predicted correctly", "quality", 1,
           _of_predictions, (LOGITS,), "", "up", inputs=("quality.accuracy", "quality.unpredicted"), absent=NO_SCORES,
           of_rows=True),
    Metric("loss", "loss", "mean cross-entropy", "quality", 2,
           _loss, (LOGITS,), "nats", "down", inputs=("quality.loss", "quality.samples"), absent=INFINITE_LOGITS,
           of_rows=True),
    Metric("ece", "ECE", "expected calibration error, 15 bins of equal width", "quality", 49,
           _calibration, (LOGITS,), "", "down", source=GUO,
           inputs=("quality.calibration_error", "quality.loss", "quality.samples"), of_rows=True),
    Metric("class.mir", "MIR", "class means and weights: MIR", "class", 3,
           None, _OF_BOTH, "", TOWARD, _MIR, SONG, all_orders=True, of_simplex=True,
           inputs=("class_level.values.mir",)),
    Metric("class.hdr", "HDR", "class means and weights: HDR", "class", 4,
           None, _OF_BOTH, "", TOWARD, _HDR, SONG, all_orders=True, inputs=("class_level.values.hdr",)),
    Metric("nc1.pinv", "NC1", "tr(Σ_W Σ_B⁺)/C", "nc1", 5,
           None, _OF_SCATTER, "", "down", 0.0, PAPYAN, inputs=("nc1",)),
    Metric("class.entropy_means", "H means", "entropy of class means", "class", 6,
           None, _OF_MEANS, "nats", TOWARD, _ENTROPY, SONG, all_orders=True, of_simplex=True,
           inputs=("class_level.values.first",)),
    Metric("class.entropy_weights", "H weights", "entropy of classifier weights", "class", 7,
           None, _OF_BOTH, "nats", TOWARD, _ENTROPY, SONG, all_orders=True, of_simplex=True,
           inputs=("class_level.values.second",)),
    Metric("within.entropy_mean", "H within", "within-class entropy, mean", "within", 8,
           Tensor.mean, _OF_ROWS, "nats", "down", 0.0, SONG, all_orders=True, inputs=("within",)),
    Metric("sample.mir", "sample MIR", "features and their labels' weight rows: MIR", "sample", 9,
           None, _OF_PAIRS, source=SONG, all_orders=True, inputs=("sample_level.values.mir",)),
    Metric("sample.hdr", "sample HDR", "features and their labels' weight rows: HDR", "sample", 10,
           None, _OF_PAIRS, source=SONG, all_orders=True, inputs=("sample_level.values.hdr",)),
    Metric("nc2.etf", "NC2", "distance of class means from the simplex ETF", "nc2", 11,
           collapse.etf_distance, _OF_MEANS, "", "down", 0.0, PAPYAN, of_simplex=True, inputs=("means",),
           absent=COINCIDE),
    Metric("nc3.duality", "NC3", "distance of class means from weights", "nc3", 12,
           collapse.duality, _OF_BOTH, "", "down", 0.0, PAPYAN, inputs=("weights", "distinct_means"),
           absent=ZERO_WEIGHTS),
    Metric("nc4.disagreement", "NC4", "prediction is not the nearest mean's class", "nc4", 13,
           _of_predictions, (LOGITS, SECOND_PASS), "", "down", 0.0, PAPYAN,
           inputs=("nearest.disagreement", "quality.unpredicted"), absent=NO_SCORES, of_rows=True),
    Metric("class.mutual_information", "MI", "class means and weights: mutual information", "class", 14,
           None, _OF_BOTH, "nats", source=SONG, all_orders=True, inputs=("class_level.values.mutual_information",)),
    Metric("sample.entropy_features", "H features", "entropy of the features", "sample", 15,
           None, _OF_ROWS, "nats", source=SONG, all_orders=True, inputs=("sample_level.values.first",)),
    Metric("sample.entropy_normalized", "H norm.", "entropy of the features over log min(N, D)", "sample", 29,
           _normalized, _OF_ROWS, source=SKEAN,
           inputs=("sample_level.values.first", "samples", "sample_level.left_out", "features")),
    Metric("sample.effective_rank", "eff. rank", "exp of the features' entropy", "sample", 16,
           Tensor.exp, _OF_ROWS, source=ROY, inputs=("sample_level.values.first",)),
    Metric("sample.entropy_weights", "H label rows", "entropy of the labels' weight rows", "sample", 17,
           None, _OF_PAIRS, "nats", source=SONG, all_orders=True, inputs=("sample_level.values.second",)),
    Metric("sample.entropy_joint", "H joint", "entropy of features and weight rows together", "sample", 18,
           None, _OF_PAIRS, "nats", source=SONG, all_orders=True, inputs=("sample_level.values.joint",)),
    Metric("sample.mutual_information", "sample MI", "features and weight rows: mutual information", "sample", 19,
           None, _OF_PAIRS, "nats", source=SONG, all_orders=True, inputs=("sample_level.values.mutual_information",)),
    Metric(COMPUTING_ERROR, "MIR c.e.", "error of sample.mir from sampling, 0 if exact", "sample", 28,
           None, _OF_PAIRS, inputs=("sample_level.values.mir_computing_error",)),
    Metric("within.entropy_max", "H within max", "within-class entropy, largest", "within", 20,
           Tensor.max, _OF_ROWS, "nats", "down", 0.0, SONG, all_orders=True, inputs=("within",)),
    Metric("nc1.cdnv", "CDNV", "class-distance normalised variance", "nc1", 21,
           None, _OF_MEANS, "", "down", 0.0, GALANTI, inputs=("pairs.distances.value",), absent=COINCIDE),
    Metric("nc1.quotient", "tr W/B", "tr Σ_W / tr Σ_B", "nc1", 43,
           collapse.quotient, _OF_MEANS, "", "down", 0.0, TIRER, inputs=("all_variances", "class_sizes", "means"),
           absent=COINCIDE),
    Metric("separation", "log sep.", "log tr(Σ_W Σ_B⁺), separation fuzziness", "nc1", 30,
           collapse.separation, _OF_SCATTER, "", "down", None, HE_SU, inputs=("nc1", "means"), absent=NO_SPREAD),
    Metric("nc2.equinorm_means", "equinorm μ", "std/mean of class mean norms", "nc2", 22,
           collapse.equinorm, _OF_MEANS, "", "down", 0.0, PAPYAN, inputs=("means",), absent=COINCIDE),
    Metric("nc2.equinorm_weights", "equinorm w", "std/mean of weight norms", "nc2", 23,
           collapse.equinorm, _OF_BOTH, "", "down", 0.0, PAPYAN, inputs=("weights",), absent=ZERO_WEIGHTS),
    Metric("nc2.lognorm_variance", "var log‖μ‖", "variance of the logarithm of class mean norms", "nc2", 42,
           collapse.lognorm_variance, _OF_MEANS, "", "down", 0.0, WU, inputs=("means",), absent=CENTRAL_MEAN),
    Metric("nc2.equiangular_means", "equiang. μ", "mean |cos + 1/(C−1)|, means", "nc2", 24,
           None, _OF_MEANS, "", "down", 0.0, PAPYAN, of_simplex=True, inputs=("pairs.angles.value",), absent=COINCIDE),
    Metric("nc2.equiangular_weights", "equiang. w", "mean |cos + 1/(C−1)|, weights", "nc2", 25,
           collapse.equiangular, _OF_BOTH, "", "down", 0.0, PAPYAN, of_simplex=True, inputs=("weights",),
           absent=ZERO_WEIGHTS),
    Metric("gnc2.uniformity", "GNC2", "mean log(1/‖m̂ − m̂'‖)", "nc2", 31,
           None, _OF_MEANS, "", TOWARD, _UNIFORMITY, LIU, inputs=("pairs.evenness.mean",), absent=SAME_DIRECTION),
    Metric("gnc2.spread", "GNC2 s.d.", "standard deviation of log(1/‖m̂ − m̂'‖) over pairs", "nc2", 32,
           None, _OF_MEANS, "", "down", 0.0, WU, of_simplex=True, inputs=("pairs.evenness.spread",),
           absent=SAME_DIRECTION),
    Metric("nc3.uniformity", "NC3 s.d.", "standard deviation of cos(w, m) over classes", "nc3", 33,
           collapse.duality_uniformity, _OF_BOTH, "", "down", 0.0, WU, inputs=("weights", "means"), absent=ZERO_LENGTH),
    Metric("nc3.simplex", "NC3 simplex", "distance of W Mᵀ from the simplex ETF", "nc3", 44,
           collapse.simplex_duality, _OF_BOTH, "", "down", 0.0, ZHU, of_simplex=True, inputs=("weights", "means"),
           absent=NO_ANGLE),
    Metric("nearest_mean_accuracy", "NCM acc", "share nearest to their own class mean", "nc4", 34,
           None, (SECOND_PASS,), "", "up", 1.0, PAPYAN, inputs=("nearest.accuracy",), absent=FEW_SAMPLES, of_rows=True),
    Metric("class.effective_rank_weights", "eff. rank w", "effective rank of the weights alone", "class", 35,
           None, (WEIGHTS,), source=ROY, of_weights=True),
    Metric("nc2.etf_weights", "NC2 w", "distance of weights from the simplex ETF", "nc2", 36,
           None, (WEIGHTS,), "", "down", 0.0, PAPYAN, of_simplex=True, of_weights=True),
    Metric("separation.slope", "sep. slope", "slope of separation over depth", "nc1", 40,
           None, (MEANS, SCATTER, LAYERS), "", "down", None, HE_SU),
    Metric("separation.r2", "sep. R²", "how well a line fits separation over depth", "nc1", 41,
           None, (MEANS, SCATTER, LAYERS), "", "up", 1.0, HE_SU),
    Metric("centred.mir", "centred MIR", "sample.mir of features minus their mean", "centred", 26,
           None, (CENTRED, WEIGHTS), source=SONG, inputs=("centred.values.mir",)),
    Metric("centred.hdr", "centred HDR", "sample.hdr of features minus their mean", "centred", 27,
           None, (CENTRED, WEIGHTS), source=SONG, inputs=("centred.values.hdr",)),
    Metric("centred.effective_rank", "centred rank", "effective rank of features minus their mean", "centred", 37,
           Tensor.exp, (CENTRED,), source=WEI, inputs=("centred.values.first",)),
    Metric("erank.difference", "Δ rank", "effective rank of the first checkpoint minus this one's", "centred", 38,
           None, (CENTRED, SERIES), source=WEI),
    Metric("rankme", "RankMe", "exp H(σ/Σσ), σ the singular values of the features", "spectrum", 45,
           covariance.rankme_of, _OF_SPECTRUM, source=GARRIDO,
           inputs=("row_second_moment", "rounding_of_second_moment"), absent=covariance.NO_ROWS),
    Metric("alpha_req", "α-ReQ", "α of λ_i ∝ i^−α, λ_i the eigenvalues of the features' covariance", "spectrum", 46,
           covariance.decay_rate, _OF_SPECTRUM, source=AGRAWAL, inputs=("row_eigenvalues",),
           absent=covariance.FEW_DIRECTIONS),
    Metric("participation_ratio", "part. ratio", "(Σλ)²/Σλ² of the features' covariance", "spectrum", 47,
           covariance.participation, _OF_SPECTRUM, source=GAO, inputs=("row_covariance",),
           absent=covariance.EQUAL_ROWS),
    Metric("nc5.cosine", "NC5", "mean |cos(μ_c, μ_out)|, μ_out the mean of other data", "nc5", 39,
           _outside_cosine, (OUTSIDE,), "", "down", 0.0, AMMAR),
    Metric("nc5.centred", "NC5 centred", "mean |cos(μ_c − μ_G, μ_out − μ_G)|", "nc5", 48,
           partial(_outside_cosine, centred=True), (OUTSIDE,), "", "down", 0.0),
    Metric("nc4.disagreement_train_means", "NC4 train μ", "prediction is not the nearest training mean's class", "nc4",
           54, _of_predictions, (LOGITS, TRAIN_MEANS), "", "down", 0.0, PAPYAN,
           inputs=("nearest_train.disagreement", "quality.unpredicted"), absent=NO_SCORES, of_rows=True),
    Metric("nearest_mean_accuracy_train_means", "NCM acc train μ", "share nearest to the training mean of their class",
           "nc4", 55, None, (TRAIN_MEANS,), "", "up", 1.0, PAPYAN, inputs=("nearest_train.accuracy",),
           absent=FEW_SAMPLES, of_rows=True),
    Metric("documents.entropy", "H doc.", "entropy of a document's own rows, mean over documents", "documents", 50,
           None, (DOCUMENTS,), "nats", source=SKEAN, inputs=("documents.means.entropy",)),
    Metric("documents.curvature", "curvature", "mean angle between successive steps within a document", "documents", 51,
           None, (DOCUMENTS,), "rad", source=HOSSEINI, inputs=("documents.means.curvature",)),
    Metric("erank.documents", "doc. rank", "exp of the mean over documents of the entropy of centred rows", "documents",
           52, math.exp, (DOCUMENTS,), source=WEI, inputs=("documents.means.centred_entropy",)),
    Metric("erank.documents_difference", "Δ doc. rank", "erank.documents of the reference minus this one's",
           "documents", 53, _rank_difference, (DOCUMENTS, REFERENCE), source=WEI,
           inputs=("documents.means.centred_entropy", "reference"), absent=REASONS[CENTRED_ENTROPY]),
)
# fmt: on
