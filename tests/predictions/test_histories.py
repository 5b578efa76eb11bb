"""Tests of histories of examples with known answers, and of histograms by class."""

import numpy as np
import pytest

from ckpt_probe.predictions.examples import counts_by_class, worst_first
from ckpt_probe.predictions.series import histories

HISTORIES = {
    # The first index that stays right, the number of times forgotten, and whether never learned, by right (1) or wrong.
    "11111": (0, 0, False),
    "00011": (3, 0, False),
    "10101": (4, 2, False),
    "11110": (5, 1, False),
    "00000": (5, 0, True),
    "01101": (4, 1, False),
    "00001": (4, 0, False),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_a_history_has_its_first_learned_index_and_its_times_forgotten(history: str) -> None:
    predicted = np.array([[1 if right == "1" else 0] for right in history])
    statistics = histories(predicted, np.array([1]))
    first, forgotten, never = HISTORIES[history]
    assert (statistics.first_learned[0], statistics.forgotten[0], statistics.never_learned[0]) == (
        first,
        forgotten,
        never,
    )
    assert statistics.right[0] == history.count("1")


def test_changes_of_wrong_predictions_count() -> None:
    statistics = histories(np.array([[0], [2], [2], [1]]), np.array([1]))
    assert (statistics.changed[0], statistics.forgotten[0], statistics.right[0]) == (2, 0, 1)


def test_the_worst_examples_come_first() -> None:
    names = list(HISTORIES)
    predicted = np.array([[int(history[step]) for history in names] for step in range(5)])
    statistics = histories(predicted, np.ones(len(names), dtype=int))
    loss = np.array([0.1, 0.1, 0.1, 3.0, 5.0, 0.1, 0.2])
    assert [names[index] for index in worst_first(statistics, loss)] == [
        "00000", "10101", "11110", "01101", "00001", "00011", "11111",
    ]  # fmt: skip
    assert worst_first(statistics, None)[0] == names.index("00000")


def test_histograms_by_class_count_every_example() -> None:
    rng = np.random.default_rng(0)
    labels, values = rng.choice([2, 5, 9], 200), rng.integers(0, 4, 200)
    counts = counts_by_class(values, labels, np.array([2, 5, 9]), 4)
    expected = [[np.sum((labels == label) & (values == value)) for value in range(4)] for label in (2, 5, 9)]
    assert counts.tolist() == expected
