"""Tests of progress: repeated messages are shown once, and long jobs advance a progress bar."""

import json
from pathlib import Path

import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.progress import DeduplicatedProgress, NullProgress


class Messages(NullProgress):
    """Progress that collects its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_repeated_message_is_shown_once() -> None:
    collected = Messages()
    progress = DeduplicatedProgress(collected)
    with progress.task("checkpoints", 2) as bar:
        for text in ("3 rows left out", "3 rows left out", "4 rows left out"):
            progress.message(text)
            bar.advance()
    assert collected.messages == ["3 rows left out", "4 rows left out"]


def test_writing_event_files_advances_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    advanced = []
    monkeypatch.setattr("ckpt_probe.cli.output.Bar.advance", lambda bar, amount=1, **facts: advanced.append(amount))
    records = [{"step": step, "split": "test", "accuracy": 0.5, "loss": 1.0} for step in range(3)]
    Path("r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(["export", "r.jsonl", "--tensorboard", "events"]) == 0
    # One file of records was read, and six values were written.
    assert sum(advanced) == 7
    assert "6 values" in capsys.readouterr().err
