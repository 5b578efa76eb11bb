"""Extract the checkpoints of a training run while it is writing them."""

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
"""Seconds between two looks at the directory."""


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
    """Write `out`/NAME.h5 for every present and future checkpoint in the directory `source`.

    A checkpoint is extracted when its files have not changed between two looks and its header is complete. Checkpoints
    that are left out are reported with the reason.

    Args:
        source: Directory of a run.
        out: Directory of the dumps.
        until: Step of the last checkpoint to wait for; None to continue forever.
        every: Seconds between two looks.
        overwrite: As in `extract_series`.
        progress: Where progress and notes go.
        options: As in `extract_series`.

    Yields:
        Name of each checkpoint, and whether its dump was written; it may have existed already.

    Raises:
        UsageError: If `source` is a file; otherwise as in `extract_series`.
        DataError: As in `extract_series`.
    """
    if Path(source).is_file():
        raise UsageError(f"{source}: --follow needs the directory of a run, not one checkpoint")
    progress, setup = progress or NullProgress(), Setup.taken_from(options)
    storage = Storage(**options)
    arrivals = Arrivals(source, state_key=setup.state_key, base=setup.base)
    members = _arriving(arrivals, until, every, progress, str(source))
    yield from extract_members(members, source, out, setup, storage, overwrite=overwrite, progress=progress)


def _arriving(arrivals: Arrivals, until: int | None, every: float, progress: Progress, source: str) -> Iterator[Member]:
    reported: dict[str, str] = {}
    last = -1
    with progress.task(f"following {source}", None, "checkpoints") as bar:
        while True:
            for member in arrivals.look():
                yield member
                bar.advance()
                last = max(last, -1 if member.step is None else member.step)
            for name, why in arrivals.left_out.items():
                if reported.get(name) != why:
                    progress.message(f"{name}: not extracted: {why}")
            reported = dict(arrivals.left_out)
            if until is not None and last >= until and arrivals.settled:
                return
            time.sleep(every)
