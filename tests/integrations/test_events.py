"""Tests that a probe reports the events of a run during training, in the log and as texts of TensorBoard."""

import logging
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.integrations.journal import Journal

STEPS = [int(step) for step in np.unique(np.geomspace(1, 6000, 40).round())]


class Writer:
    """Keep texts as a SummaryWriter does."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str, int]] = []

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))


def record(index: int) -> dict:
    noise = 0.02 * np.random.default_rng(index).normal()
    return {
        "checkpoint": f"step-{STEPS[index]}",
        "step": STEPS[index],
        "split": "test",
        "accuracy": (index > 20) + noise,
    }


def test_an_event_is_a_line_and_a_text_once_its_interval_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, writer = Journal(tmp_path / "records.jsonl"), Writer()
    with caplog.at_level(logging.WARNING):
        for index in range(30):
            journal.append(record(index))
            journal.write_events(writer, STEPS[index])
    onsets = [(text, step) for tag, text, step in writer.texts if tag == "events" and "left its initial level" in text]
    assert len(onsets) == 1
    assert onsets[0][0].startswith("test accuracy left its initial level between steps")
    assert STEPS[21] <= onsets[0][1] <= STEPS[27]
    lines = [message for message in caplog.messages if "event: " in message]
    assert [line.partition("event: ")[2] for line in lines] == [text for _, text, _ in writer.texts]
    # A resumed run does not repeat the events of its earlier part.
    resumed = Journal(tmp_path / "records.jsonl")
    resumed.append(record(30))
    assert not any("left its initial level" in sentence for sentence in resumed.events)
    resumed.write_events(None, 1)
