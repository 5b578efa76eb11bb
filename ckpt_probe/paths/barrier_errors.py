"""Standard errors of barriers, from the influences of the same rows at three positions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.cache import bytes_of_influences, read_influences
from ckpt_probe.analysis.entries import STDERR, join_reasons
from ckpt_probe.files import replacing
from ckpt_probe.moments.errors import EQUAL, FEW_DOCUMENTS, NO_SPREAD, Influences

OF_BARRIERS = {"loss": "loss", "error": "accuracy"}
"""Metrics whose influences determine the error of a barrier, by quantity; those of the error have the other sign."""

ON_CHORD = "no position lies above the chord"
NO_INFLUENCES = "influences of the rows are missing at a position, or are those of other rows"

OfPosition = Mapping[float, Influences | None]


def write_influences(file: Path, influences: Sequence[Influences | None]) -> None:
    """Write the influences on loss and accuracy at one position, one entry for each split; nothing without any."""
    content = bytes_of_influences([None if of is None else _of_barriers(of) for of in influences])
    if content is not None:
        with replacing(file, overwrite=True) as temporary:
            temporary.write_bytes(content)


def barriers_with_errors(
    summary: Sequence[Record], points: Sequence[Record], file_of: Callable[[float], Path]
) -> list[Record]:
    """Return the barriers of each split with their standard errors, `barrier.loss_stderr` and others.

    The barrier at its position α is a sum over rows of l_α − (1−α) l_A − α l_B, whose values for one row depend on
    each other. Its standard error is that of the mean of this difference; the position counts as fixed.

    Args:
        summary: Barriers, one record for each split, in the order of the splits.
        points: Records in the order of their positions.
        file_of: Returns the file of a position that `write_influences` wrote.
    """
    alphas = sorted({point["alpha"] for point in points if 0 <= point["alpha"] <= 1})
    stored = {alpha: _read(file_of(alpha), len(summary)) for alpha in alphas}
    return [
        _with_errors(barrier, points, {alpha: influences[number] for alpha, influences in stored.items()})
        for number, barrier in enumerate(summary)
    ]


def _with_errors(barrier: Record, points: Sequence[Record], influences: OfPosition) -> Record:
    """Return the barriers of a split with an error beside each, and the reasons for missing ones in `missing`."""
    result, reasons = dict(barrier), []
    points = [point for point in points if point["split"] == barrier["split"] and point["alpha"] in influences]
    for quantity, metric in OF_BARRIERS.items():
        name = f"barrier.{quantity}"
        if barrier[name] is None:
            errors = dict.fromkeys((name, f"{name}_over_mean"), (None, "the barrier is undefined"))
        else:
            alpha, sign = barrier[f"{name}_alpha"], 1 if quantity == "loss" else -1
            highest = max(points, key=lambda point: sign * point[metric])["alpha"]
            over_chord = (None, ON_CHORD) if alpha in {0, 1} else _error(influences, metric, alpha, alpha)
            errors = {name: over_chord, f"{name}_over_mean": _error(influences, metric, highest, 0.5)}
        for key, (error, reason) in errors.items():
            result[f"{key}{STDERR}"] = error
            reasons += [] if error is not None else [f"{key}{STDERR}: {reason}"]
    ordered = {key: result[key] for name in barrier for key in (name, f"{name}{STDERR}") if key in result}
    return {**ordered, "missing": join_reasons(*reasons)}


def _error(influences: OfPosition, metric: str, alpha: float, share: float) -> tuple[float | None, str]:
    """Return the standard error of the value at α minus (1 − share) times that of A and share times that of B.

    Returns:
        The error, or None with the reason.
    """
    inner, first, last = (influences.get(position) for position in (alpha, 0.0, 1.0))
    if inner is None or first is None or last is None or any(metric not in each for each in (inner, first, last)):
        return None, NO_INFLUENCES
    if not (inner.design.same_rows(first.design) and inner.design.same_rows(last.design)):
        return None, NO_INFLUENCES
    terms = inner[metric].double(), (1 - share) * first[metric].double(), share * last[metric].double()
    error = inner.design.stderr(terms[0] - terms[1] - terms[2])
    if error is None:
        return None, FEW_DOCUMENTS
    scale = max(inner.design.stderr(term) or 0.0 for term in terms)
    return (error, "") if error > EQUAL * scale else (None, NO_SPREAD)


def _of_barriers(influences: Influences) -> Influences:
    known = {name: influences[name] for name in OF_BARRIERS.values() if name in influences}
    return Influences(influences.design, known)


def _read(file: Path, splits: int) -> list[Influences | None]:
    """Return the influences at a position, one entry for each split; None where the file has none."""
    try:
        return read_influences(file.read_bytes(), splits)
    except (OSError, ValueError, KeyError):
        return [None] * splits
