"""Spectra of all weight matrices of the checkpoints of a series, cached for each checkpoint."""

import json
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from ckpt_probe.checkpoints import Checkpoint, Member, quantised
from ckpt_probe.checkpoints.statistics import FLOATING
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import Workers, results
from ckpt_probe.series import natural
from ckpt_probe.trajectories.layout import BUFFER, is_matrix
from ckpt_probe.trajectories.measure import cached, identity_of
from ckpt_probe.trajectories.spectra import Spectrum, spectrum_of
from ckpt_probe.trajectories.stream import Opening

Spectra = dict[str, Spectrum]
"""Spectra by the name of the tensor."""


def matrices_of(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the floating-point matrices and convolutions of a checkpoint, in natural order."""
    codes = quantised(checkpoint.layout)
    return sorted(
        (
            name
            for name, (dtype, shape) in checkpoint.layout.items()
            if dtype in FLOATING and is_matrix(shape) and name not in codes and not BUFFER.search(name)
        ),
        key=natural,
    )


def spectra_of_series(
    members: Sequence[Member],
    opening: Opening,
    *,
    bootstrap: int,
    workers: Workers,
    cache: bool,
    progress: Progress,
) -> Generator[tuple[int, Spectra], None, None]:
    """Yield index and spectra of each checkpoint, as they are ready.

    Args:
        members: Checkpoints in order; changes are those since the first.
        opening: How they are opened.
        bootstrap: Number of synthetic spectra for the goodness of fit of each tail; 0 leaves it out.
        workers: Workers that take one checkpoint each.
        cache: Whether to use the cache.
        progress: Receives messages.
    """
    work = _Task(members[0], opening, bootstrap, cache)
    yield from results(work, list(members), names=[m.name for m in members], workers=workers, say=progress.message)


@dataclass(frozen=True)
class _Task:
    """Computes the spectra of one checkpoint, in this process or in a worker."""

    first: Member
    opening: Opening
    bootstrap: int
    cache: bool

    def __call__(self, member: Member) -> Spectra:
        alone = member.path == self.first.path

        def compute() -> dict[str, np.ndarray]:
            spectra = self._compute(member)
            numbers = {
                name: {**vars(replace(spectrum, values=())), "count": len(spectrum.values)}
                for name, spectrum in spectra.items()
            }
            values = [np.array(spectrum.values) for spectrum in spectra.values()]
            return {"numbers": np.array(json.dumps(numbers)), "values": np.concatenate([np.zeros(0), *values])}

        identity = (
            [identity_of(m, self.opening) for m in ([member] if alone else [member, self.first])] if self.cache else []
        )
        stored = cached("spectra", [identity, self.bootstrap], self.cache, compute, NullProgress())
        spectra, start = {}, 0
        for name, fields in json.loads(str(stored["numbers"])).items():
            count = fields.pop("count")
            values = tuple(stored["values"][start : start + count].tolist())
            spectra[name] = Spectrum(**{**fields, "missing": tuple(fields["missing"]), "values": values})
            start += count
        return spectra

    def _compute(self, member: Member) -> Spectra:
        with ExitStack() as stack:
            checkpoint = self.opening.open(member.path, stack)
            first = None if member.path == self.first.path else self.opening.open(self.first.path, stack)
            spectra = {}
            for name in matrices_of(checkpoint):
                same = first is not None and name in first and first.shape(name) == checkpoint.shape(name)
                before = _numbers(first, name) if first is not None and same else None
                spectra[name] = spectrum_of(_numbers(checkpoint, name), before, self.bootstrap)
            return spectra


def _numbers(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return checkpoint.read(name).detach().double().numpy()
