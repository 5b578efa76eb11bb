"""A probe for a training loop of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ckpt_probe.analysis import Settings
from ckpt_probe.integrations.evaluation import DURING_TRAINING, Evaluation, Place
from ckpt_probe.integrations.journal import Journal
from ckpt_probe.integrations.ranks import is_first, on_first
from ckpt_probe.integrations.tap import Tap


class Probe:
    """Measures a model in the evaluations that a training loop runs anyway, and keeps the records in a file.

        probe = cp.Probe(model, "runs/mine/records.jsonl")
        with probe.evaluation("test", step) as evaluation:
            for inputs, labels in loader:
                logits = model(inputs)
                evaluation.update(labels)
        evaluation.record["class.mir"]

    classifier: the name of the last linear layer, where it is not to be found by running the model. start: the step
    that a resumed run goes on from; later records in the file are then dropped, as they come again. Raises UsageError
    where the file has records and the run starts at 0, unless `overwrite`. In a distributed run (torch.distributed)
    every process does all of this; the records are those of all samples together, and the first process writes them.
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
    ) -> None:
        self._tap = Tap(model, classifier)
        self._settings = settings or DURING_TRAINING
        self._journal = Journal(records)
        on_first(lambda: self._journal.begin(start, overwrite=overwrite))

    @contextmanager
    def evaluation(
        self, split: str, step: int, *, epoch: float | None = None, limit: int | None = None
    ) -> Iterator[Evaluation]:
        """One evaluation: call `update(labels)` after each forward pass; at the end it has its `record`.

        limit: how many rows of this process count, where a sampler hands out the first ones once more
        (`ckpt_probe.integrations.ranks.own_rows(loader)`). Raises DataError or UsageError at the end, in every process,
        where a batch could not be measured; nothing is recorded after an exception.
        """
        evaluation = Evaluation(self._tap, self._settings, limit)
        self._tap.start()
        try:
            yield evaluation
        finally:
            self._tap.stop()
        record = evaluation.finish(Place(f"step-{step:06d}", step, split, epoch))
        if is_first():
            self._journal.append(record)
