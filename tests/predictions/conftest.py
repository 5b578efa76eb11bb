"""Fixtures that write small dumps with known predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.dumps import DumpWriter
from ckpt_probe.moments.quality import Scored

Writing = Callable[..., Path]
LABELS = np.array([0, 0, 1, 2])
PREDICTED = [[0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 1, 1]]
"""Example 0 is always right, 1 from step 10 on, 2 is forgotten once and learned at step 20, 3 is never learned."""


@pytest.fixture
def write_run(tmp_path: Path) -> Writing:
    """Return a function that writes the dumps of a run and returns their directory."""

    def write(
        name: str,
        scores: Sequence[np.ndarray | Scored | None],
        labels: np.ndarray | Sequence[np.ndarray | None] | None,
        *,
        split: str = "test",
        class_names: Sequence[str] | None = None,
        classes: int = 3,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        for step, score in enumerate(scores):
            labels_of_step = labels[step] if isinstance(labels, list) else labels
            write_dump(directory / f"step-{10 * step:04d}.h5", score, labels_of_step, split, class_names, classes)
        return directory

    return write


@pytest.fixture
def run(write_run: Writing) -> Path:
    """Write the dumps of `PREDICTED` and return their directory."""
    return write_run("run", [logits_of(row) for row in PREDICTED], LABELS, class_names=("ant", "bee", "cow"))


def write_dump(
    path: Path,
    scores: np.ndarray | Scored | None,
    labels: np.ndarray | None,
    split: str = "test",
    class_names: Sequence[str] | None = None,
    classes: int = 3,
    sample_names: Sequence[str] | None = None,
) -> None:
    """Write a dump with the given scores, or without scores."""
    rows = len(scores.prediction if isinstance(scores, Scored) else scores) if scores is not None else len(labels)  # pyright: ignore
    with DumpWriter(path, None, classes=classes, features=2, overwrite=True) as writer:
        if class_names is not None:
            writer.write_class_names(class_names)
        writer.start_split(
            split, rows, logits=scores is not None, scored=isinstance(scores, Scored), labelled=labels is not None
        )
        features = np.zeros((rows, 2), dtype=np.float32)
        writer.append(split, features, np.full(rows, -1) if labels is None else labels, scores)
        if sample_names is not None:
            writer.write_sample_names(split, sample_names)


def logits_of(predicted: Sequence[int], classes: int = 3) -> np.ndarray:
    """Return logits (n, classes) with the largest value at the predicted class."""
    return np.eye(classes, dtype=np.float32)[np.asarray(predicted)] * 3
