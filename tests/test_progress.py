"""How work tells how far it is: what is said once, and that jobs of many parts show bars."""

import json
from pathlib import Path

import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.progress import DeduplicatedProgress, NullProgress


class Heard(NullProgress):
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def test_a_message_is_said_once() -> None:
    heard = Heard()
    progress = DeduplicatedProgress(heard)
    with progress.task("checkpoints", 2) as bar:
        for text in ("3 rows left out", "3 rows left out", "4 rows left out"):
            progress.message(text)
            bar.advance()
    assert heard.said == ["3 rows left out", "4 rows left out"]


def test_writing_event_files_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    advanced = []
    monkeypatch.setattr("ckpt_probe.cli.output.Bar.advance", lambda bar, amount=1, **facts: advanced.append(amount))
    records = [{"step": step, "split": "test", "accuracy": 0.5, "loss": 1.0} for step in range(3)]
    Path("r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(["export", "r.jsonl", "--tensorboard", "events"]) == 0
    # One file of records read, and six values written.
    assert sum(advanced) == 7
    assert "6 values" in capsys.readouterr().err
