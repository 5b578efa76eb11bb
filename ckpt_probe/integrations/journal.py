"""Write records.jsonl: one complete line for each step and split of a run, none twice after any number of resumes."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.analysis import Record, read_records
from ckpt_probe.analysis.records import metric_names
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import write_text
from ckpt_probe.integrations.evaluation import Evaluation
from ckpt_probe.integrations.ranks import is_first

if TYPE_CHECKING:
    from ckpt_probe.findings.findings import EventWatch

Key = tuple[int, str]

LOG = logging.getLogger(__name__)


class Journal:
    """The records of one run in a file of JSON Lines, in the format of `analyze --json`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._known: set[Key] | None = None
        self._written: set[Key] = set()
        self._last_step: dict[str, int] = {}
        self._watch: EventWatch | None = None
        self.events: list[str] = []
        """Sentences about the events that the last record has completed."""

    def begin(self, step: int, *, overwrite: bool = False) -> None:
        """Prepare for training that continues after `step` updates: remove later records, which will come again.

        Args:
            step: Number of updates; 0 for a new run.
            overwrite: Whether a new run replaces the records of another one.

        Raises:
            UsageError: If a new run finds records of another one and `overwrite` is false.
        """
        if self.path.is_dir():
            raise UsageError(f"{self.path}: a directory, expected a file of records")
        records = self._records()
        # An evaluation before training belongs to this run.
        mine = [record for record in records if record["step"] <= step and (step > 0 or _key(record) in self._written)]
        if step == 0 and len(mine) < len(records) and not overwrite:
            advice = "pass overwrite=True to replace them, resume that run, or choose another name"
            raise UsageError(f"{self.path}: has records of another run; {advice}")
        if len(mine) < len(records):
            write_text(self.path, "".join(map(_line, mine)), overwrite=True)
        self._known = {_key(record) for record in mine}

    def record(
        self, evaluation: Evaluation, checkpoint: str, step: int, split: str, epoch: float | None, *, every: int
    ) -> dict[str, float]:
        """Finish an evaluation and write its record, unless it cannot be measured, which causes a warning.

        Args:
            evaluation: The evaluation.
            checkpoint: Name of the checkpoint.
            step: Training step.
            split: Name of the split.
            epoch: Epoch, if known.
            every: Smallest number of steps between two records of a split; an earlier evaluation is not recorded.

        Returns:
            The values of the record by name; empty if there is no record.
        """
        if 0 < step - self._last_step.get(split, step) < every:
            return {}
        try:
            record = evaluation.finish(checkpoint, step, split, epoch)
        except DataError as error:
            LOG.warning("step %d, %s: not measured: %s", step, split, error)
            return {}
        self._last_step[split] = step
        if is_first():
            self.append(record)
        return {name: record[name] for name in metric_names([record], errors=True) if record[name] is not None}

    def write_events(self, writer: Any, step: int) -> None:
        """Write the events that the last record has completed as texts of TensorBoard, if the writer takes texts.

        Args:
            writer: A SummaryWriter, or another object.
            step: Training step.
        """
        if hasattr(writer, "add_text"):
            for sentence in self.events:
                writer.add_text("events", sentence, step)

    def append(self, record: Record) -> None:
        """Write one line immediately; if the file has this step and split already, leave it unchanged and warn."""
        if self._known is None:
            self._known = {_key(existing) for existing in self._records()}
        if _key(record) in self._known:
            where = f"step {record['step']}, split {record['split']}"
            LOG.warning("%s: %s has a record already, which is unchanged", self.path, where)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = _line(record).encode("utf-8")
        try:
            with self.path.open("ab", buffering=0) as file:
                # One call, so that a killed process has written the complete line or nothing.
                if file.write(line) != len(line):
                    raise DataError(f"{self.path}: the disk took only part of a record; free some space")
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._known.add(_key(record))
        self._written.add(_key(record))
        self._report_events(str(record.get("split")))

    def _report_events(self, split: str) -> None:
        from ckpt_probe.findings.findings import EventWatch  # scipy, which starts slowly

        records = [record for record in self._records() if str(record.get("split")) == split]
        if self._watch is None:
            # Events of an earlier part of a resumed run are known.
            self._watch = EventWatch()
            self._watch.look(split, records[:-1])
        self.events = self._watch.look(split, records)
        for sentence in self.events:
            LOG.warning("%s: event: %s", self.path, sentence)

    def _records(self) -> list[Record]:
        """Return the records of the file, from which an incomplete last line is removed."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            write_text(self.path, complete, overwrite=True)
        records = list(read_records(self.path))
        for number, record in enumerate(records, 1):
            if not isinstance(record.get("step"), int):
                raise DataError(f"{self.path}: record {number} has no step; it is not a file of records of a run")
        return records


def _key(record: Record) -> Key:
    return record["step"], str(record.get("split"))


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
