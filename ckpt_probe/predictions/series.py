"""Predictions of a run: those of the same rows at every checkpoint that has them, and the histories of these rows."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ckpt_probe.dumps import open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.groups import GroupedRun
from ckpt_probe.keywords import as_sequence
from ckpt_probe.predictions.scores import Scores, read_scores
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.series import Member

NO_LABELS = "the rows have no labels"


@dataclass(frozen=True)
class Histories:
    """Numbers of every example over the checkpoints of a run.

    Attributes:
        labels: Class indices, shape (N,).
        first_learned: Index of the first checkpoint from which on the example is always predicted correctly, shape
            (N,); T if it is predicted wrongly at the last one.
        forgotten: Number of times that it was predicted correctly at a checkpoint and wrongly at the next, shape (N,).
        never_learned: Whether it is predicted correctly at no checkpoint, shape (N,).
        right: Number of checkpoints at which it is predicted correctly, shape (N,).
        changed: Number of times that its predicted class changed from a checkpoint to the next, shape (N,).
    """

    labels: np.ndarray
    first_learned: np.ndarray
    forgotten: np.ndarray
    never_learned: np.ndarray
    right: np.ndarray
    changed: np.ndarray


def histories(predicted: np.ndarray, labels: np.ndarray) -> Histories:
    """Compute when examples are learned, and how often they are forgotten (Toneva et al. 2019, "forgetting events").

    Args:
        predicted: Predicted classes at every checkpoint in order, shape (T, N).
        labels: Class indices, shape (N,).
    """
    steps, samples = predicted.shape
    first = np.full(samples, steps)
    forgotten, right, changed = (np.zeros(samples, dtype=np.int64) for _ in range(3))
    before: np.ndarray | None = None
    for step in range(steps):
        now = predicted[step] == labels
        if before is not None:
            forgotten += before & ~now
            changed += predicted[step] != predicted[step - 1]
        first = np.where(now, np.minimum(first, step), steps)
        right += now
        before = now
    return Histories(labels, first, forgotten, right == 0, right, changed)


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of one split at every checkpoint of a run.

    Attributes:
        run: Name of the run.
        split: Name of the split.
        members: The T checkpoints, in order.
        predicted: Predicted classes, shape (T, N), int32.
        labels: Class indices, shape (N,), or None if rows have no labels.
        loss: Cross-entropy at the last checkpoint in nats, shape (N,), or None.
        classes: Number of logits of a row; 0 if a checkpoint has none, or they have different numbers.
        class_names: Names of the first classes; empty if they have none.
        sample_names: Names of the samples, such as files, or None if no dump has them.
        all_members: Every dump of the run, in order.
        left_out: Reasons by the name of each dump of the run that is left out.
    """

    run: str
    split: str
    members: tuple[Member, ...]
    predicted: np.ndarray
    labels: np.ndarray | None
    loss: np.ndarray | None
    classes: int
    class_names: tuple[str, ...]
    sample_names: tuple[str, ...] | None
    all_members: tuple[Member, ...]
    left_out: dict[str, str]

    @property
    def paths(self) -> list[Path]:
        """Return the files of the checkpoints."""
        return [member.path for member in self.members]

    @cached_property
    def positions(self) -> list[int | str]:
        """Return the steps of the checkpoints if these are known and distinct, else their names."""
        steps = [member.step for member in self.members if member.step is not None]
        by_step = len(set(steps)) == len(self.members)
        return [*steps] if by_step else [member.name for member in self.members]

    @property
    def names(self) -> list[str]:
        """Return the positions as texts."""
        return [str(position) for position in self.positions]

    @cached_property
    def histories(self) -> Histories:
        """Return the histories of the examples; raise DataError without labels."""
        if self.labels is None:
            advice = "so no example is learned or forgotten; `by='step'` compares the predictions alone"
            raise DataError(f"{self.run}: {self.split}: {NO_LABELS}, {advice}")
        return histories(self.predicted, self.labels)

    def accuracy(self, index: int) -> float | None:
        """Return the share of correct predictions at a checkpoint; None without labels."""
        return None if self.labels is None else float((self.predicted[index] == self.labels).mean())

    def class_name(self, label: int) -> str | None:
        """Return the name of a class, or None if it has none."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else None

    def at(self, indices: Sequence[int]) -> "Predictions":
        """Return the predictions of some checkpoints, the last of which is the last one."""
        members = tuple(self.members[index] for index in indices)
        return replace(self, members=members, predicted=self.predicted[list(indices)])

    def require_same_rows(self, other: "Predictions") -> None:
        """Raise DataError if the rows of another run have another number, other labels or other names."""
        names = (self.sample_names, other.sample_names)
        if None not in names and names[0] != names[1]:
            raise DataError(f"{self.run} and {other.run}: {self.split}: other samples, by their names")
        if _key(self.predicted[0], self.labels) != _key(other.predicted[0], other.labels):
            mine, theirs = self.predicted.shape[1], other.predicted.shape[1]
            what = f"{mine:,} and {theirs:,} rows" if mine != theirs else f"{mine:,} rows with other labels"
            raise DataError(f"{self.run} and {other.run}: {self.split}: {what}; extract both from the same data")


def read_predictions(
    path: Path | str, splits: Sequence[str] | None = None, *, run: str = "", progress: Progress | None = None
) -> list[Predictions]:
    """Read the predictions of a run, split by split.

    A dump without predictions, or with other rows than most dumps of the run, is left out with a message. So is a
    split without any predictions, unless it is named.

    Args:
        path: A dump, or a directory of dumps.
        splits: Names of splits; all if None.
        run: Name of the run, for messages.
        progress: Receives messages and bars.

    Raises:
        DataError: If no dump has predictions of a split.
    """
    progress = progress or NullProgress()
    members = open_dump_series(resolve(path))
    known: dict[str, None] = {}
    for member in () if splits else members:
        with open_dump(member.path) as dump:
            known |= dict.fromkeys(dump.splits)
    read, failed = [], []
    for split in splits or known:
        try:
            read.append(_of_split(members, split, run or str(path), progress))
        except DataError as error:
            failed.append(error)
    if failed and (splits or not read):
        raise failed[0]
    for error in failed:
        progress.message(f"left out: {error}")
    return read


def read_runs(
    runs: Sequence[GroupedRun], splits: str | Sequence[str] | None, progress: Progress
) -> list[list[Predictions]]:
    """Read the predictions of several runs, split by split; see `read_predictions`."""
    wanted = as_sequence(splits)
    return [read_predictions(run.path, wanted, run=run.name or str(run.path), progress=progress) for run in runs]


def common_splits(read: Sequence[Sequence[Predictions]]) -> list[list[Predictions]]:
    """Return the predictions of all runs for each split that every run has.

    Raises:
        DataError: If there is no such split, or the runs have other rows.
    """
    by_split = [{predictions.split: predictions for predictions in run} for run in read]
    splits = [split for split in by_split[0] if all(split in run for run in by_split)]
    if not splits:
        raise DataError("the runs have no split with predictions in common")
    for split in splits:
        for other in by_split[1:]:
            by_split[0][split].require_same_rows(other[split])
    return [[run[split] for run in by_split] for split in splits]


def _of_split(members: Sequence[Member], split: str, run: str, progress: Progress) -> Predictions:
    scores: dict[str, Scores] = {}
    reasons: dict[str, str] = {}
    class_names: tuple[str, ...] = ()
    names_of: dict[str, tuple[str, ...]] = {}
    hashes: dict[str, str] = {}
    with progress.task(f"predictions of {split}", len(members), "dumps") as bar:
        for member in members:
            try:
                with open_dump(member.path) as dump:
                    scores[member.name] = read_scores(dump, split)
                    class_names = class_names or dump.class_names or ()
                    names = dump[split].sample_names()
                if names is not None:
                    hashes[member.name] = _hash("\0".join(names).encode())
                    names_of.setdefault(hashes[member.name], names)
            except DataError as error:
                reasons[member.name] = str(error)
            bar.advance()
    if not scores:
        more = f" ({len(reasons) - 1} more dumps likewise)" if len(reasons) > 1 else ""
        raise DataError(f"{next(iter(reasons.values()))}{more}")
    keys = {name: _key(each.predicted, each.labels) for name, each in scores.items()}
    common, agreeing = Counter(keys.values()).most_common(1)[0]
    alike = [name for name, key in keys.items() if key == common]
    most = f"{alike[0]} and {agreeing - 1} more" if agreeing > 1 else alike[0]
    hashes_of_alike = Counter(hashes[name] for name in alike if name in hashes).most_common(1)
    usual = hashes_of_alike[0][0] if hashes_of_alike else None
    for member in members:
        name = member.name
        if name in scores and keys[name] != common:
            rows, usual_rows = keys[name][0], common[0]
            fault = f", not the {usual_rows:,}" if rows != usual_rows else " with other labels than those"
            reasons[name] = f"{member.path}: {split}: {rows:,} rows{fault} of {most}; extract it from the same data"
        elif hashes.get(name, usual) != usual:
            reasons[name] = f"{member.path}: {split}: other samples, by their names, than in most dumps"
    scores = {name: each for name, each in scores.items() if name not in reasons}
    for reason in reasons.values():
        progress.message(f"left out: {reason}")
    complete = [member for member in members if member.name in scores]
    of_complete = [scores[member.name] for member in complete]
    return Predictions(
        run,
        split,
        tuple(complete),
        np.stack([each.predicted for each in of_complete]),
        of_complete[0].labels,
        of_complete[-1].loss,
        of_complete[0].classes if len({each.classes for each in of_complete}) == 1 else 0,
        class_names,
        None if usual is None else names_of[usual],
        tuple(members),
        {member.name: reasons[member.name] for member in members if member.name in reasons},
    )


def _key(predicted: np.ndarray, labels: np.ndarray | None) -> tuple[int, str]:
    """Return the number of rows and a hash of their labels, which two dumps of the same rows share."""
    return len(predicted), "" if labels is None else _hash(labels.tobytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
