"""Provide a probe for Lightning's Trainer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ckpt_probe.analysis import Settings
from ckpt_probe.errors import UsageError
from ckpt_probe.integrations.evaluation import Evaluation, checked_settings
from ckpt_probe.integrations.journal import Journal
from ckpt_probe.integrations.ranks import count_distinct_rows, on_first
from ckpt_probe.integrations.tap import Tap
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = require_extra("lightning.pytorch", "lightning").Callback

LABELS = ("labels", "label", "targets", "target", "y")


def labels_of(batch: Any) -> Tensor:
    """Return the labels (n,) of a batch: the second item of a sequence, or an entry of a mapping with a usual name.

    Raises:
        UsageError: If there are no labels.
    """
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    if isinstance(batch, Mapping) and (name := next((name for name in LABELS if name in batch), None)) is not None:
        return batch[name]
    raise UsageError(f"a batch of type {type(batch).__name__} in which no labels are found; pass labels=FUNCTION")


class LightningProbe(Callback):
    """Measure the model in every validation and test of a Lightning Trainer, without additional forward passes.

        Trainer(callbacks=[LightningProbe("runs/mine/records.jsonl")])

    The numbers go to the Trainer's logger and callback metrics as `validation/class.mir` and so on, which
    ModelCheckpoint and EarlyStopping can use, and to a file of records, one line per evaluation. In a distributed run
    the samples of all processes are one evaluation. An evaluation that cannot be measured, for instance because of NaN,
    causes a warning and has no record. Several loaders are splits `validation-0`, `validation-1` and so on.

    Args:
        records: File of records.
        labels: Function that returns the labels (n,) of a batch.
        classifier: Name of the last linear layer; found by running the module if None.
        every: Smallest number of steps between two records of a split.
        overwrite: Whether to replace the records of an earlier run, which are otherwise an error if training starts at
            step 0; a resumed run retains them up to its step.
        settings: Settings of the records.
    """

    def __init__(
        self,
        records: Path | str,
        *,
        labels: Callable[[Any], Tensor] = labels_of,
        classifier: str | None = None,
        every: int = 1,
        overwrite: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self._journal = Journal(records)
        self._labels, self._classifier, self._every, self._overwrite = labels, classifier, every, overwrite
        self._settings = checked_settings(settings)
        self._tap: Tap | None = None
        self._running: dict[str, Evaluation] = {}

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Prepare the file of records for training from the trainer's step."""
        on_first(lambda: self._journal.begin(trainer.global_step, overwrite=self._overwrite))

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Start new evaluations."""
        self._running = {}
        if self._tap is not None:
            self._tap.renew()

    def on_validation_batch_start(
        self, trainer: "Trainer", pl_module: "LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start recording the inputs of the classifier."""
        if trainer.sanity_checking:
            return
        if self._tap is None or self._tap.model is not pl_module:
            self._stop()
            self._tap = Tap(pl_module, self._classifier)
        self._tap.start()

    def on_validation_batch_end(
        self,
        trainer: "Trainer",
        pl_module: "LightningModule",
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the recorded inputs and the labels of the batch."""
        if trainer.sanity_checking or self._tap is None:
            return
        split, loaders = (
            ("test", trainer.test_dataloaders) if trainer.testing else ("validation", trainer.val_dataloaders)
        )
        if isinstance(loaders, Mapping):
            loaders = list(loaders.values())
        parts = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
        name = f"{split}-{dataloader_idx}" if len(parts) > 1 else split
        if name not in self._running:
            self._running[name] = Evaluation(self._tap, self._settings, count_distinct_rows(parts[dataloader_idx]))
        self._running[name].update(self._labels(batch))
        self._tap.pause()

    def on_validation_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log and store the records."""
        self._stop()
        running, self._running = self._running, {}
        step, epoch = trainer.global_step, float(trainer.current_epoch)
        for split, evaluation in running.items():
            values = self._journal.record(evaluation, f"step-{step:06d}", step, split, epoch, every=self._every)
            named = {f"{split}/{name}": value for name, value in values.items()}
            pl_module.log_dict(named, sync_dist=trainer.world_size > 1)
            for logger in trainer.loggers if self._journal.events else ():
                self._journal.write_events(getattr(logger, "experiment", None), step)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        """Remove the hooks."""
        self._stop()

    def _stop(self) -> None:
        if self._tap is not None:
            self._tap.stop()
