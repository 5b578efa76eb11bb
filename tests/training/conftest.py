"""What tests of training share."""

from collections.abc import Callable

import pytest

from ckpt_probe.progress import NullProgress


class Interrupting(NullProgress):
    """Progress that breaks off after some steps, as Ctrl-C would; keeps what is said."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def advance(self, amount: int = 1, **facts: object) -> None:
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture
def interrupting() -> Callable[[int], Interrupting]:
    """Makes a progress that interrupts whoever shows it after so many steps."""
    return Interrupting
