"""Progress that interrupts training, for tests of resumed runs."""

from collections.abc import Callable

import pytest

from ckpt_probe.progress import NullProgress


class Interrupting(NullProgress):
    """Progress that raises KeyboardInterrupt after a number of steps, and keeps the messages."""

    def __init__(self, steps: int) -> None:
        self.remaining = steps
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def advance(self, amount: int = 1, **facts: object) -> None:
        self.remaining -= amount
        if self.remaining < 0:
            raise KeyboardInterrupt


@pytest.fixture
def interrupting() -> Callable[[int], Interrupting]:
    """Return the class of progress that interrupts training after a given number of steps."""
    return Interrupting
