"""A run that is still writing checkpoints → dumps, each as soon as its checkpoint is whole."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ckpt_probe.checkpoints import Arrivals
from ckpt_probe.errors import UsageError
from ckpt_probe.extraction.extract import extract_members
from ckpt_probe.extraction.setup import Setup, Storage
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.series import Member

EVERY = 5.0
"""Seconds between two looks."""


def follow_series(
    source: Path | str,
    out: Path | str,
    *,
    until: int | None = None,
    every: float = EVERY,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[tuple[str, bool]]:
    """Write `out`/NAME.h5 for every checkpoint that is, and that comes to be, in the directory `source`.

    Yields each one's name, and whether it was written or was there already. Looks every `every` seconds, and takes a
    checkpoint when its files have not changed between two looks and its header is complete. Ends once all up to one of
    step `until` or later is extracted, else never. What is left out is said, with the reason. options: as
    `extract_series`, and raised is what that raises; UsageError where `source` is a file.
    """
    if Path(source).is_file():
        raise UsageError(f"{source}: --follow needs the directory of a run, not one checkpoint")
    progress, setup = progress or NullProgress(), Setup.taken_from(options)
    storage = Storage(**options)
    arrivals = Arrivals(source, state_key=setup.state_key, base=setup.base)
    members = _arriving(arrivals, until, every, progress, str(source))
    yield from extract_members(members, source, out, setup, storage, overwrite=overwrite, progress=progress)


def _arriving(arrivals: Arrivals, until: int | None, every: float, progress: Progress, source: str) -> Iterator[Member]:
    said: dict[str, str] = {}
    last = -1
    with progress.task(f"following {source}", None, "checkpoints") as bar:
        while True:
            for member in arrivals.look():
                yield member
                bar.advance()
                last = max(last, -1 if member.step is None else member.step)
            for name, why in arrivals.left_out.items():
                if said.get(name) != why:
                    progress.message(f"{name}: not extracted: {why}")
            said = dict(arrivals.left_out)
            if until is not None and last >= until and arrivals.settled:
                return
            time.sleep(every)
