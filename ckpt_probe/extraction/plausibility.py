"""Accuracies of extracted checkpoints against chance, and against those that checkpoints or trainers state."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.checkpoints.metadata import MONITORED
from ckpt_probe.extraction.config import Setup

ACCURACY = frozenset({"accuracy", "acc", "acc1", "top1", "acc_top1", "multiclassaccuracy"})
"""Names of an accuracy in lower case, after `val_`, `eval_best_` and the like."""

FEWEST_ROWS = 20
"""Labelled rows below which an accuracy says nothing."""

SLACK, ERRORS = 0.05, 4.0
"""Difference of two accuracies that is no contradiction: an amount, and standard errors of the measured one."""

ADVICE = "its inputs may be prepared otherwise than in training, or its classes numbered otherwise"


@dataclass(frozen=True)
class Stated:
    """An accuracy that a file states.

    Attributes:
        value: The accuracy, between 0 and 1.
        source: Description of where it is stated, for messages.
        split: Name of the split; None if it is not known.
        best: Whether it is the best accuracy of the run so far.
    """

    value: float
    source: str
    split: str | None = None
    best: bool = False


@dataclass
class Tally:
    """Predictions of one split, counted block by block: rows with a label, correct ones, and rows of each class."""

    right: int = 0
    per_class: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows with a label and a prediction."""
        return sum(self.per_class)

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return self.right / self.rows

    @property
    def chance(self) -> float:
        """Share of the most frequent class, which a prediction of nothing else would reach."""
        return max(self.per_class) / self.rows

    @property
    def near_chance(self) -> bool:
        """Return whether the accuracy is at most 2.5 times chance, and at most 15 % of the way from chance to 1."""
        return self.accuracy <= min(2.5 * self.chance, self.chance + 0.15 * (1 - self.chance))


@dataclass(frozen=True)
class Outcome:
    """Predictions of a checkpoint by split, and the accuracies that it states."""

    name: str
    tallies: Mapping[str, Tally]
    stated: Sequence[Stated] = ()

    def contradiction(self) -> tuple[Stated, str] | None:
        """Return a stated accuracy that the measured ones contradict, and both in words.

        An accuracy of one split is compared with that of the same split; any other is contradicted only if no split
        comes near it from below, and the checkpoint states none that is met.
        """
        misses = []
        for stated in self.stated:
            name, tally = max(self.tallies.items(), key=lambda pair: (pair[0] == stated.split, pair[1].accuracy))
            below = stated.value - tally.accuracy
            error = math.sqrt(stated.value * (1 - stated.value) / tally.rows)
            if (abs(below) if name == stated.split else below) <= SLACK + ERRORS * error:
                if name != stated.split:
                    return None
                continue
            misses.append((stated, f"{tally.accuracy:.3f} on {name}, where {stated.source} is {stated.value:.3f}"))
        return misses[0] if misses else None


def warnings_of(outcomes: Sequence[Outcome]) -> list[str]:
    """Return warnings of accuracies that are near chance at every checkpoint, or contradict stated ones."""
    judged = []
    for outcome in outcomes:
        tallies = {name: tally for name, tally in outcome.tallies.items() if tally.rows >= FEWEST_ROWS}
        judged += [Outcome(outcome.name, tallies, outcome.stated)] if tallies else []
    warnings = []
    tallies = [(tally, name) for outcome in judged for name, tally in outcome.tallies.items()]
    if tallies and all(tally.near_chance for tally, _ in tallies):
        tally, split = max(tallies, key=lambda pair: pair[0].accuracy)
        warnings.append(
            f"accuracy stays near chance at every checkpoint: at most {tally.accuracy:.3f} (split {split}, whose most "
            f"frequent class has {tally.chance:.3f} of the rows); if the model is trained, {ADVICE}"
        )
    misses = [(outcome.name, *miss) for outcome in judged if (miss := outcome.contradiction())]
    # A checkpoint may well be worse than the best one before it, but not all of them.
    if len(misses) < sum(bool(outcome.stated) for outcome in judged):
        misses = [miss for miss in misses if not miss[1].best]
    if misses:
        name, _, words = misses[0]
        more = f" (and {len(misses) - 1} more checkpoints)" if len(misses) > 1 else ""
        warnings.append(f"accuracy contradicts what the checkpoint states: {name}: {words}{more}; {ADVICE}")
    return warnings


def stated_accuracies(checkpoint: Checkpoint, setup: Setup) -> list[Stated]:
    """Return the accuracies that a checkpoint or its trainer states, unless they are known to be of other data.

    They are those of our own metadata, of the evaluation at this step in `trainer_state.json`, of the score that
    Lightning monitors, and of plain entries beside the weights, as fractions or in percent.
    """
    metadata = checkpoint.metadata
    named = metadata.data is not None
    arguments = setup.data_arguments or metadata.data_arguments
    if named and (setup.data or metadata.data, arguments) != (metadata.data, metadata.data_arguments):
        return []
    evaluated = [
        Stated(value, f"the {name} of {split} that it states", split if named else None)
        for split, values in metadata.metrics.items()
        for name, value in _accuracies(values)
    ]
    if evaluated:
        return evaluated
    beside = [*_accuracies(checkpoint.facts), *_accuracies(checkpoint.facts.get(MONITORED))]
    return [Stated(value, name, best="best" in name.lower()) for name, value in beside]


def _accuracies(values: Any) -> Iterator[tuple[str, float]]:
    """Yield entries that are accuracies by their names and values, as fractions."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        last = str(name).lower().replace("/", "_").replace("@", "")
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
        if number and any(last == known or last.endswith(f"_{known}") for known in ACCURACY):
            yield str(name), float(value) if value <= 1 else value / 100
