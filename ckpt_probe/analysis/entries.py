"""Names of a record: metrics with their labels and references, counts, positions, and their documented order."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckpt_probe.metrics.theory import simplex_exists

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
TOWARD = "toward reference"

Record = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """Describes one metric of a record.

    Attributes:
        name: Dotted name in the record.
        label: Short label for tables.
        unit: Unit, empty for a plain number.
        direction: "up", "down", "toward reference", or empty if neither is better.
        reference: Value at neural collapse, or the name of that value in the record.
        source: Publication that defines the metric.
        meaning: One line for lists of metrics.
        priority: Metrics with lower numbers keep their column longer in a narrow terminal.
        family: Name of the family of metrics to which it belongs.
    """

    name: str
    label: str
    unit: str
    direction: str
    reference: str | float | None
    source: str
    meaning: str
    priority: int
    family: str = ""


ENTRIES = (
    Entry("accuracy", "acc", "", "up", None, "", "share of samples predicted right", 1, "quality"),
    Entry("loss", "loss", "nats", "down", None, "", "mean cross-entropy", 2, "quality"),
    Entry("class.mir", "MIR", "", TOWARD, "reference.mir", SONG, "class means and weights: MIR", 3, "class"),
    Entry("class.hdr", "HDR", "", TOWARD, "reference.hdr", SONG, "class means and weights: HDR", 4, "class"),
    Entry("nc1.pinv", "NC1", "", "down", 0.0, PAPYAN, "tr(Σ_W Σ_B⁺)/C", 5, "nc1"),
    Entry("class.entropy_means", "H means", "nats", TOWARD, "reference.entropy", SONG, "of class means", 6, "class"),
    Entry("class.entropy_weights", "H weights", "nats", TOWARD, "reference.entropy", SONG, "of weights", 7, "class"),
    Entry("within.entropy_mean", "H within", "nats", "down", 0.0, SONG, "within-class entropy, mean", 8, "within"),
    Entry("sample.mir", "sample MIR", "", "", None, SONG, "features and their labels' weight rows: MIR", 9, "sample"),
    Entry("sample.hdr", "sample HDR", "", "", None, SONG, "features and their labels' weight rows: HDR", 10, "sample"),
    Entry("nc2.etf", "NC2", "", "down", 0.0, PAPYAN, "distance of class means from the simplex ETF", 11, "nc2"),
    Entry("nc3.duality", "NC3", "", "down", 0.0, PAPYAN, "distance of class means from weights", 12, "nc3"),
    Entry("nc4.disagreement", "NC4", "", "down", 0.0, PAPYAN, "prediction is not the nearest mean's class", 13, "nc4"),
    Entry("class.mutual_information", "MI", "nats", "", None, SONG, "class means and weights", 14, "class"),
    Entry("sample.entropy_features", "H features", "nats", "", None, SONG, "of the features", 15, "sample"),
    Entry("sample.entropy_normalized", "H norm.", "", "", None, SKEAN, "the same over log min(N, D)", 29, "sample"),
    Entry("sample.effective_rank", "eff. rank", "", "", None, ROY, "exp of the features' entropy", 16, "sample"),
    Entry("sample.entropy_weights", "H label rows", "nats", "", None, SONG, "of the labels' weight rows", 17, "sample"),
    Entry(
        "sample.entropy_joint", "H joint", "nats", "", None, SONG, "of features and weight rows together", 18, "sample"
    ),
    Entry("sample.mutual_information", "sample MI", "nats", "", None, SONG, "features and weight rows", 19, "sample"),
    Entry("sample.mir_stderr", "MIR s.e.", "", "", None, "", "standard error of sample.mir, 0 if exact", 28, "sample"),
    Entry(
        "within.entropy_max", "H within max", "nats", "down", 0.0, SONG, "within-class entropy, largest", 20, "within"
    ),
    Entry("nc1.cdnv", "CDNV", "", "down", 0.0, GALANTI, "class-distance normalised variance", 21, "nc1"),
    Entry("separation", "log sep.", "", "down", None, HE_SU, "log tr(Σ_W Σ_B⁺), separation fuzziness", 30, "nc1"),
    Entry("nc2.equinorm_means", "equinorm μ", "", "down", 0.0, PAPYAN, "std/mean of class mean norms", 22, "nc2"),
    Entry("nc2.equinorm_weights", "equinorm w", "", "down", 0.0, PAPYAN, "std/mean of weight norms", 23, "nc2"),
    Entry("nc2.equiangular_means", "equiang. μ", "", "down", 0.0, PAPYAN, "mean |cos + 1/(C−1)|, means", 24, "nc2"),
    Entry("nc2.equiangular_weights", "equiang. w", "", "down", 0.0, PAPYAN, "mean |cos + 1/(C−1)|, weights", 25, "nc2"),
    Entry("gnc2.uniformity", "GNC2", "", TOWARD, "reference.uniformity", LIU, "mean log(1/‖m̂ − m̂'‖)", 31, "nc2"),
    Entry("gnc2.spread", "GNC2 s.d.", "", "down", 0.0, WU, "standard deviation of the same over pairs", 32, "nc2"),
    Entry("nc3.uniformity", "NC3 s.d.", "", "down", 0.0, WU, "standard deviation of cos(w, m) over classes", 33, "nc3"),
    Entry(
        "nearest_mean_accuracy", "NCM acc", "", "up", 1.0, PAPYAN, "share nearest to their own class mean", 34, "nc4"
    ),
    Entry("class.effective_rank_weights", "eff. rank w", "", "", None, ROY, "of the weights alone", 35, "class"),
    Entry("nc2.etf_weights", "NC2 w", "", "down", 0.0, PAPYAN, "distance of weights from the simplex ETF", 36, "nc2"),
    Entry("separation.slope", "sep. slope", "", "down", None, HE_SU, "slope of separation over depth", 40, "nc1"),
    Entry("separation.r2", "sep. R²", "", "up", 1.0, HE_SU, "how well a line fits separation over depth", 41, "nc1"),
    Entry("centred.mir", "centred MIR", "", "", None, SONG, "sample.mir of features less their mean", 26, "centred"),
    Entry("centred.hdr", "centred HDR", "", "", None, SONG, "sample.hdr of features less their mean", 27, "centred"),
    Entry("centred.effective_rank", "centred rank", "", "", None, WEI, "of features less their mean", 37, "centred"),
    Entry("erank.difference", "Δ rank", "", "", None, WEI, "that of the first checkpoint less this one", 38, "centred"),
    Entry("nc5.cosine", "NC5", "", "down", 0.0, AMMAR, "mean |cos(μ_c − μ_G, μ_out − μ_G)|", 39, "nc5"),
)

OF_SIMPLEX = frozenset(
    {
        *("nc2.etf", "nc2.etf_weights", "nc2.equiangular_means", "nc2.equiangular_weights", "gnc2.spread"),
        *("reference.mir", "reference.entropy"),
    }
)
"""Metrics that reach 0 in a simplex alone, and values of a simplex, which C > D + 1 classes cannot form."""

WEIGHTS_ALONE = ("class.effective_rank_weights", "nc2.etf_weights")
"""Of `ENTRIES`, those that only records of classifier weights alone have."""

LAYERS_ALONE = ("separation.slope", "separation.r2")
"""Of `ENTRIES`, those that only the last layer of a dump with several has."""

ON_REQUEST = ("erank.difference", "nc5.cosine")
"""Of `ENTRIES`, those that compare a dump with another one."""

CLASS_ENTRIES = (
    Entry("samples", "samples", "", "", None, "", "samples of the class", 1),
    Entry("mean_norm", "‖mean‖", "", "", None, "", "norm of the class mean", 2),
    Entry("variance", "variance", "", "down", 0.0, GALANTI, "mean ‖z − μ_c‖² in the class", 3),
    Entry("within.entropy", "H within", "nats", "down", 0.0, SONG, "entropy of the class's own rows", 4),
    Entry("nearest.own", "own mean", "", "up", 1.0, PAPYAN, "share of samples nearest to their own class mean", 5),
    Entry(
        "nearest.confusion", "nearest means", "", "", None, PAPYAN, "class:samples nearest to its mean, most first", 6
    ),
)
"""Columns of `--per-class`, one row a class."""

CENTRED = {
    "centred.mir": "sample.mir",
    "centred.hdr": "sample.hdr",
    "centred.effective_rank": "sample.effective_rank",
}
"""Metrics of features less their mean, each with its name among the metrics of the features themselves."""

CONFUSION, NAMED_CONFUSION = "nearest.confusion", "nearest.named"
PLAIN_NAME = re.compile(r"[\w.'-]+")
"""Class names that need no quotes beside a colon and a count."""

POSITION = ("checkpoint", "step", "alpha", "split", "layer", "depth", "class", "class_name")
COUNTS = ("samples", "features", "classes", "classes_present", "samples_left_out", "classes_left_out")
NOT_STORED = "samples_not_stored"
COUNTS_IF_ANY = (NOT_STORED, "classes_below_min_samples", "classes_of_one_sample")
"""Counts that are absent from a record where they are 0."""
REFERENCES = ("reference.mir", "reference.hdr", "reference.entropy", "reference.uniformity")
EXTRA = ("route", "route_reason", "missing")
"""Names of a record beside the metrics: where it belongs, counts, values at collapse, how and why not."""


def references_of(entry: Entry, records: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Return the distinct values at collapse of a metric over the records that have it; None for an undefined one."""
    return list(dict.fromkeys(_reference(entry, record) for record in records if record.get(entry.name) is not None))


def _reference(entry: Entry, record: Mapping[str, Any]) -> float | None:
    classes, features = record.get("classes"), record.get("features")
    # Records of earlier versions name the values of a simplex that does not exist.
    left = None if classes is None else classes - (record.get("classes_left_out") or 0)
    of_simplex = entry.name in OF_SIMPLEX or entry.reference in OF_SIMPLEX
    if of_simplex and left is not None and not simplex_exists(left, features):
        return None
    return record.get(entry.reference) if isinstance(entry.reference, str) else entry.reference


def entries_in(records: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """Return the entries that at least one record has, in the order of tables; those of Rényi's orders come last."""
    names = dict.fromkeys(name for record in records for name in record)
    entries = [entry for entry in (CLASS_ENTRIES if "class" in names else ENTRIES) if entry.name in names]
    known = {entry.name: entry for entry in ENTRIES}
    for name in names:
        order = re.fullmatch(r"renyi_([^.]+(?:\.\d+)?)\.((?:class|sample|within)\..+)", name)
        if order and order[2] in known:
            entry = known[order[2]]
            label = f"{entry.label} α={order[1]}"
            # At collapse the entropies of the simplex are equal at every order, that of the joint matrix is not.
            reference = None if entry.reference == "reference.mir" else entry.reference
            priority = len(ENTRIES) + len(entries)
            entries.append(replace(entry, name=name, label=label, reference=reference, priority=priority))
    return entries


def empty_record() -> Record:
    """Return a record of a split without any value: every name that such a record always has, with None."""
    apart = {*CENTRED, *ON_REQUEST, *WEIGHTS_ALONE, *LAYERS_ALONE}
    metrics = [entry.name for entry in ENTRIES if entry.name not in apart]
    return dict.fromkeys([*COUNTS, *metrics, *REFERENCES, *EXTRA])


def join_reasons(*reasons: str | None) -> str | None:
    """Join the reasons for missing values into the text of `missing`; None without any."""
    return "; ".join(reason for reason in reasons if reason) or None


def settled(record: Record, *, scored: bool = False) -> Record:
    """Replace values that are not finite by None, with the reason in `missing`.

    Args:
        record: The record.
        scored: Whether the samples had logits, so that a missing loss means an infinite one.
    """
    infinite = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    reasons = [f"{', '.join(infinite)}: not finite"] if infinite else []
    if scored and record.get("loss") is None:
        reasons.append("loss: not finite, because logits are infinite or NaN")
    if not reasons:
        return record
    return {**record, **dict.fromkeys(infinite), "missing": join_reasons(record.get("missing"), *reasons)}


def in_order(record: Mapping[str, Any]) -> Record:
    """Return a record with its names in the documented order, and other names at the end."""
    known = [*POSITION, *COUNTS, *COUNTS_IF_ANY, *(entry.name for entry in ENTRIES), *REFERENCES]
    ordered = {name: record[name] for name in known if name in record}
    others = {name: value for name, value in record.items() if name not in ordered and name not in EXTRA}
    extra = {name: record.get(name) for name in EXTRA if name in record or name == "missing"}
    return {**ordered, **others, **extra}


def named_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[Record]:
    """Add class names to the rows of classes.

    Args:
        rows: One row per class, with the number of the class in `class`.
        names: Names of the classes; a class beyond the last name is called by its number.

    Returns:
        Rows with `class_name` after `class`, and `nearest.named` after `nearest.confusion`; unchanged without names.
    """
    return [_named_row(row, names) if names else dict(row) for row in rows]


def _named_row(row: Mapping[str, Any], names: Sequence[str]) -> Record:
    def name_of(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    def quoted(name: str) -> str:
        return name if PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)

    named: Record = {}
    for key, value in row.items():
        named[key] = value
        if key == "class":
            named["class_name"] = name_of(value)
        elif key == CONFUSION and value is not None:
            pairs = (part.split(":") for part in value.split())
            named[NAMED_CONFUSION] = " ".join(f"{quoted(name_of(int(label)))}:{count}" for label, count in pairs)
    return named
