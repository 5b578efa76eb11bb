"""Weights of a series as a part of other commands: a quick audit from a sample, and the survey of a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_probe.analysis.entries import Record
from ckpt_probe.analysis.weights import ClassifierRecords
from ckpt_probe.checkpoints import Member, open_series
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.trajectories.audit import Audit
from ckpt_probe.trajectories.rows import rows_of
from ckpt_probe.trajectories.series import WeightOptions, measured_series
from ckpt_probe.trajectories.spectra import Spectrum
from ckpt_probe.trajectories.stream import Opening

SAMPLE = 2**22
"""Number of entries of a checkpoint that are read."""


@dataclass(frozen=True)
class WeightSurvey:
    """Everything that a page shows of the weights of a series.

    Attributes:
        network: Records of the network, one per checkpoint.
        blocks: Records of blocks.
        spectra: Spectra of every matrix at the first and the last checkpoint, with their names.
        sentences: Verdict of the audit, and its notes.
    """

    network: list[Record]
    blocks: list[Record]
    spectra: dict[str, tuple[tuple[str, Spectrum], ...]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


def audit_series(
    members: Sequence[Member],
    *,
    state_key: str | None = None,
    base: Path | None = None,
    sample: int | None = SAMPLE,
    cache: bool = True,
    progress: Progress | None = None,
) -> Audit | None:
    """Audit a series of checkpoints; copies in local files are confirmed by all bytes.

    Args:
        members: Its checkpoints in order.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        sample: Number of entries of a checkpoint that are read; None for all.
        cache: Whether to use the user's cache.
        progress: Receives a bar.

    Returns:
        The audit; None if the checkpoints have no parameter in common.
    """
    opening = Opening(state_key, base, sample)
    options = WeightOptions(parts=("audit",), opening=opening, sketch=False, cache=cache)
    return measured_series(members, options, progress or NullProgress()).audit


def survey_weights(path: Path, options: WeightOptions, progress: Progress) -> WeightSurvey:
    """Measure a series once, for its network and its blocks.

    Args:
        path: Directory of checkpoints.
        options: Options; the level is that of both.
        progress: Receives messages and bars.
    """
    opening = options.opening
    members = open_series(resolve(path), state_key=opening.state_key, base=opening.base)
    series = measured_series(members, options, progress)
    heads = ClassifierRecords(state_key=opening.state_key, base=opening.base, cache=options.cache)
    network: list[Record] = []
    blocks: list[Record] = []
    spectra: dict[str, tuple[tuple[str, Spectrum], ...]] = {}
    audit = series.audit
    texts = [] if audit is None else [audit.verdict.removeprefix("audit: "), *audit.notes]
    try:
        rows = rows_of(series, series.members, options, ("network", "block"), heads, progress)
        for member, of_member, records in rows:
            network += records[0]
            blocks += records[1]
            if member in (series.members[0], series.members[-1]):
                for name, spectrum in of_member.items():
                    spectra[name] = (*spectra.get(name, ()), (member.name, spectrum))
    except DataError as error:
        texts.append(str(error))
    return WeightSurvey(network, blocks, spectra, tuple(map(_sentence, texts)))


def verdict_of(path: Path, cache: bool, progress: Progress) -> str:
    """Return the verdict of the audit of a local series as a sentence, or the reason for its absence."""
    try:
        audit = audit_series(open_series(path), cache=cache, progress=progress)
    except CkptProbeError as error:
        return _sentence(f"the checkpoints could not be audited: {error}")
    return "" if audit is None else _sentence(audit.verdict.removeprefix("audit: "))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
