"""A dump's own thread: what Ctrl-C does to it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ckpt_probe.extraction.writer import BackgroundWriter


class Writer:
    """Takes a moment to end, in which the process is interrupted; whether it came to its end, and how."""

    def __init__(self, *, interrupts: bool) -> None:
        self._interrupts = interrupts
        self.rows: list[int] = []
        self.ended: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Any]:
        try:
            yield self
            self.ended = "whole"
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        finally:
            if self._interrupts:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
            self.rows.append(-1)

    def append(self, row: int) -> None:
        self.rows.append(row)


def written(writer: Any, error: type[BaseException] | None = None) -> None:
    with BackgroundWriter(writer.opened) as background:
        background.submit(lambda opened: opened.append(7))
        if error is not None:
            raise error


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_last_rows_are_written_waits_for_the_file() -> None:
    writer = Writer(interrupts=True)
    with pytest.raises(KeyboardInterrupt):
        written(writer)
    assert writer.rows == [7, -1]
    assert "dump writer" not in [thread.name for thread in threading.enumerate()]


def test_ctrl_c_before_gives_the_file_up() -> None:
    writer = Writer(interrupts=False)
    with pytest.raises(KeyboardInterrupt):
        written(writer, KeyboardInterrupt)
    assert (writer.rows, writer.ended) == ([7, -1], "_Abandoned")
