"""Provide a probe for a training loop written by the user."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ckpt_probe.analysis import Settings
from ckpt_probe.errors import UsageError
from ckpt_probe.integrations.evaluation import Evaluation, checked_settings
from ckpt_probe.integrations.journal import Journal
from ckpt_probe.integrations.ranks import is_first, on_first
from ckpt_probe.integrations.tap import Tap
from ckpt_probe.keywords import whole_number

LOG = logging.getLogger(__name__)


class Probe:
    """Measure a model in the evaluations of a training loop, and store the records in a file.

        probe = cp.Probe(model, "runs/mine/records.jsonl")
        with probe.evaluation("test", step) as evaluation:
            for inputs, labels in loader:
                logits = model(inputs)
                evaluation.update(labels)
        evaluation.record["class.mir"]

    In a distributed run (torch.distributed) every process does all of this; the records are those of all samples
    together, and the first process writes them.

    Args:
        model: Model.
        records: File of records.
        classifier: Name of the last linear layer; found by running the model if None.
        start: Step from which a resumed run continues; later records in the file are removed, as they will come again.
        overwrite: Whether a run that starts at step 0 replaces the records of an earlier one.
        settings: Settings of the records.
        writer: SummaryWriter of TensorBoard that receives events as texts.

    Raises:
        UsageError: If the run starts at step 0, the file has records and `overwrite` is false.
    """

    def __init__(
        self,
        model: nn.Module,
        records: Path | str,
        *,
        classifier: str | None = None,
        start: int = 0,
        overwrite: bool = False,
        settings: Settings | None = None,
        writer: Any = None,
    ) -> None:
        self._writer = writer
        self._running = 0
        self._tap = Tap(model, classifier)
        self._settings = checked_settings(settings)
        self._journal = Journal(records)
        on_first(lambda: self._journal.begin(start, overwrite=overwrite))

    @contextmanager
    def evaluation(
        self, split: str, step: int, *, epoch: float | None = None, limit: int | None = None
    ) -> Iterator[Evaluation]:
        """Measure one evaluation: call `update(labels)` after each forward pass; `record` is available at the end.

        Nothing is recorded after an exception inside the `with`. Evaluations may be nested or take turns.

        Args:
            split: Name of the split.
            step: Training step.
            epoch: Epoch, if known.
            limit: Number of rows of this process that are used, if its sampler repeats the first ones at the end
                (`ckpt_probe.integrations.ranks.count_distinct_rows(loader)`).

        Raises:
            CkptProbeError: At the end, in every process, if a batch could not be measured.
            UsageError: If `step`, `epoch` or `limit` is no number.
        """
        step, limit = whole_number("step", step), None if limit is None else whole_number("limit", limit, 0)
        epoch = _checked_epoch(epoch)
        evaluation = Evaluation(self._tap, self._settings, limit)
        if not self._running:
            self._tap.renew()
            self._tap.start()
        self._running += 1
        try:
            yield evaluation
            if self._tap.pending:
                advice = "it has no labels: call update(labels) after each forward pass"
                LOG.warning("step %d, split %s: the last forward pass is not measured, as %s", step, split, advice)
        finally:
            self._running -= 1
            self._tap.stop()
            if self._running:
                self._tap.start()
        record = evaluation.finish(f"step-{step:06d}", step, split, epoch)
        if is_first():
            self._journal.append(record)
            self._journal.write_events(self._writer, step)


def _checked_epoch(epoch: Any) -> float | None:
    """Return an epoch as a number that JSON has; raise UsageError for other values."""
    if epoch is None or isinstance(epoch, int):
        return epoch
    try:
        number = float(epoch)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"`epoch={epoch!r}`: expected a finite number")
    return number
