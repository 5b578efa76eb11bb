"""Tests of `--follow` beside a running training, until a step or until Ctrl-C."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .conftest import CONFIG, Run, command, environment

LIMIT = 300
"""Time limit in seconds, far above the time that any step needs."""


@contextmanager
def running(words: tuple[object, ...], directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background, yield its process, and end it in any case."""
    with subprocess.Popen(
        command(*words),
        cwd=directory,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # Shells let background jobs ignore SIGINT, and child processes inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_extract_follows_a_training_run_until_a_step(probe: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    follow = ("extract", "run", "-o", "dumps", "--follow", "--set", "until=60", "--set", "every=0.1")
    with running(follow, tmp_path) as following:
        assert probe("train", "config.toml", "-o", "run").returncode == 0
        _, errors = following.communicate(timeout=LIMIT)
    assert following.returncode == 0, errors
    assert "dumps: 3 dumps written, 0 already complete" in errors
    # The dumps are those of the same command after the training.
    done = probe("extract", "run", "-o", "dumps")
    assert "0 dumps written, 3 already complete" in done.stderr, done.stderr
    assert len(probe("analyze", "dumps", "--json").stdout.splitlines()) == 6


def test_ctrl_c_ends_extract_with_a_summary(trained: Path) -> None:
    last = trained / "run" / "checkpoints" / "step-000060.safetensors"
    later = last.rename(trained / "later")
    with running(("extract", "run", "-o", "new", "--follow", "--set", "every=0.1"), trained) as following:
        wait_for(lambda: len(list((trained / "new").glob("step-*.h5"))) == 2, following)
        later.rename(last)
        assert following.stderr is not None
        assert any("step-000060.h5: written" in line for line in following.stderr)
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=LIMIT)
    assert following.returncode == 0, errors
    assert errors.endswith("new: 3 dumps written, 0 already complete; stopped\n")
    assert {file.name for file in (trained / "new").iterdir()} == {f"step-{s:06d}.h5" for s in (0, 10, 60)}


def test_report_updates_its_page_when_a_source_changes(tmp_path: Path) -> None:
    records, page = tmp_path / "records.jsonl", tmp_path / "report.html"

    def shows(step: int) -> bool:
        return page.exists() and f'"at-{step}"' in page.read_text(encoding="utf-8")

    def add(step: int, end: str) -> None:
        with records.open("a") as file:
            file.write(json.dumps({"checkpoint": f"at-{step}", "step": step, "split": "test", "loss": 1.0}) + end)

    with running(
        ("report", "records.jsonl", "-o", "report.html", "--follow", "--set", "every=0.1"), tmp_path
    ) as following:
        add(1, "\n")
        wait_for(lambda: shows(1), following)
        add(2, "\n")
        wait_for(lambda: shows(2), following)
        # An incomplete line is a record that is still being written.
        add(3, '\n{"step": ')
        with records.open("a") as file:
            file.write('4, "checkpoint": "at-4", "split": "test", "loss": 2.0}\n')
        wait_for(lambda: shows(4), following)
        following.send_signal(signal.SIGINT)
        _, errors = following.communicate(timeout=LIMIT)
    assert following.returncode == 0, errors
    assert "report.html: 1 sections" in errors
