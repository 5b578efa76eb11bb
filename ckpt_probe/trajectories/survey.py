"""Survey of the weights of a series for a page: records of the network and of its blocks, and spectra, in one pass."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_probe.analysis.entries import Record
from ckpt_probe.analysis.weights import ClassifierRecords
from ckpt_probe.checkpoints import open_series
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.progress import Progress
from ckpt_probe.remote import resolve
from ckpt_probe.trajectories.records import RecordBuilder, WeightOptions, measured_series, with_spectra
from ckpt_probe.trajectories.spectra import Spectrum
from ckpt_probe.trajectories.verdict import audit_series


@dataclass(frozen=True)
class WeightSurvey:
    """Everything that a page shows of the weights of a series.

    Attributes:
        network: Records of the network, one per checkpoint.
        blocks: Records of blocks.
        spectra: Spectra of every matrix at the first and the last checkpoint, with their names.
        sentences: Verdict of the audit, and what else it found.
    """

    network: list[Record]
    blocks: list[Record]
    spectra: dict[str, tuple[tuple[str, Spectrum], ...]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()


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
    builders = [RecordBuilder(series, replace(options, by=by)) for by in ("network", "block")]
    heads = ClassifierRecords(state_key=opening.state_key, base=opening.base, cache=options.cache)
    tables: list[list[Record]] = [[], []]
    spectra: dict[str, list[tuple[str, Spectrum]]] = {}
    with progress.task("checkpoints", len(members), "checkpoints") as bar:
        for member, of_member in with_spectra(members, members, options, progress):
            extra = heads.of(member, progress)
            for table, builder, more in zip(tables, builders, (extra, {}), strict=True):
                table += builder.records(member, of_member, more)
            if member in (members[0], members[-1]):
                for name, spectrum in of_member.items():
                    spectra.setdefault(name, []).append((member.name, spectrum))
            bar.advance()
    sentences: list[str] = []
    if series.audit is not None:
        notes = [finding.text for finding in series.audit.findings if not finding.alarm]
        sentences = [_sentence(text) for text in (series.audit.verdict.removeprefix("audit: "), *notes)]
    pairs = {name: tuple(pair) for name, pair in spectra.items()}
    return WeightSurvey(tables[0], tables[1], pairs, tuple(sentences))


def verdict_of(path: Path, cache: bool, progress: Progress) -> str:
    """Return the verdict of the audit of a local series as a sentence, or the reason for its absence."""
    try:
        audit = audit_series(open_series(path), cache=cache, progress=progress)
    except CkptProbeError as error:
        return _sentence(f"the checkpoints could not be audited: {error}")
    return "" if audit is None else _sentence(audit.verdict.removeprefix("audit: "))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
