"""Tests of Ctrl-C while a dump is written: the process survives, and no unfinished file remains."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.dumps import DumpWriter
from ckpt_probe.dumps.writing import interrupts_delayed


def interrupted_write(done: list[str]) -> None:
    with interrupts_delayed():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("written")


def endless_dump(path: Path) -> None:
    with DumpWriter(path, None, classes=2, features=64) as writer:
        writer.start_split("test", None)
        while True:
            writer.append("test", np.ones((64, 64), np.float32), np.zeros(64, int), np.zeros((64, 2)))


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_during_a_write_is_raised_after_it() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(done)
    assert done == ["written"]


@pytest.mark.usefixtures("ctrl_c")
def test_interrupts_at_any_moment_leave_no_unfinished_file(tmp_path: Path) -> None:
    for number in range(20):
        timer = threading.Timer(0.001 * number, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            start_and_run(timer, tmp_path / "a.h5")
        timer.join()
    assert list(tmp_path.iterdir()) == []


def start_and_run(timer: threading.Timer, path: Path) -> None:
    timer.start()
    endless_dump(path)
