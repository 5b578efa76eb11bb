"""Tests of records.jsonl: complete lines after a kill, each step once after a resume, records of other runs kept."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.integrations.journal import Journal


def record(step: int, split: str = "test", **values: float) -> dict:
    return {"checkpoint": f"step-{step}", "step": step, "split": split, **values}


def steps(path: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["split"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of an earlier run with steps 0, 10, 20 of two splits."""
    journal = Journal(tmp_path / "run" / "records.jsonl")
    for step in (0, 10, 20):
        for split in ("train", "test"):
            journal.append(record(step, split))
    return journal.path


def test_a_resumed_run_writes_each_step_once(path: Path) -> None:
    journal = Journal(path)
    journal.begin(10)
    assert steps(path) == [(step, split) for step in (0, 10) for split in ("train", "test")]
    for step in (10, 20, 30):
        journal.append(record(step, loss=1.0))
    assert steps(path)[4:] == [(20, "test"), (30, "test")]


def test_a_new_run_does_not_replace_records_without_overwrite(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(UsageError, match="has records of another run; pass overwrite=True"):
        Journal(path).begin(0)
    assert path.read_bytes() == before
    Journal(path).begin(0, overwrite=True)
    assert path.read_bytes() == b""


def test_an_evaluation_before_training_belongs_to_the_run_and_a_second_run_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "records.jsonl")
    journal.append(record(0))
    journal.begin(0)
    assert steps(journal.path) == [(0, "test")]
    journal.append(record(5))
    with pytest.raises(UsageError, match="another run"):
        journal.begin(0)
    assert steps(journal.path) == [(0, "test"), (5, "test")]


def test_a_repeated_step_is_not_written_and_gives_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal, before = Journal(path), path.read_bytes()
    with caplog.at_level(logging.WARNING):
        journal.append(record(20, loss=3.0))
    assert "step 20, split test has a record already" in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("fragment", ['{"step": 30, "spl', '{"step": 30, "split": "test"}', "\N{EM DASH}"])
def test_an_incomplete_last_line_is_dropped(path: Path, fragment: str) -> None:
    with path.open("ab") as file:
        file.write(fragment.encode()[:-1])
    Journal(path).append(record(30))
    assert steps(path)[-2:] == [(20, "test"), (30, "test")]
    Journal(path).begin(30)
    assert len(steps(path)) == 7


def test_files_of_other_kinds_are_refused_and_stay_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text, message in (
        ("dear diary\n", r"notes\.txt: line 1 is not JSON"),
        ('{"loss": 1}\n', "record 1 has no step"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Journal(path).begin(0, overwrite=True)
        assert path.read_text() == text
    with pytest.raises(UsageError, match="a directory"):
        Journal(tmp_path).begin(0)


WRITING = """
import itertools, sys
from ckpt_probe.integrations.journal import Journal
journal = Journal(sys.argv[1])
for step in itertools.count():
    journal.append({"step": step, "split": "test", "text": "x" * 5000})
    print(step, flush=True)
"""


def test_a_kill_leaves_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    command = [sys.executable, "-c", WRITING, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    written = steps(path)
    assert [step for step, _ in written] == list(range(len(written)))
    assert len(written) > last
    assert path.read_bytes().endswith(b"\n")


def test_an_event_is_a_warning_and_a_text_of_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    rows = [record(step, loss=1.0 + (step >= 90) + 0.01 * (step * 7919 % 13 - 6) / 6) for step in range(10, 190, 10)]
    journal = Journal(tmp_path / "records.jsonl")
    # The first rows are written directly, so that events are searched only a few times.
    journal.path.write_text("".join(json.dumps(row) + "\n" for row in rows[:10]))
    journal.begin(100)
    with SummaryWriter(tmp_path / "board") as writer:
        for row in rows[10:]:
            journal.append(row)
            journal.write_events(writer, row["step"])
    assert any("event: test loss changed abruptly between steps" in message for message in caplog.messages)
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert any("events" in tag for tag in board.Tags()["tensors"])
