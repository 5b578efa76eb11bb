"""What tests of paths and planes share."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from ckpt_probe.progress import Silent, Task


class Interrupting(Silent):
    """Progress that interrupts the evaluation of a split that follows `left` others; keeps what is said."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.evaluated = 0
        self.said: list[str] = []

    def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
        self.evaluated += name in {"train", "test"}
        if self.evaluated > self.left:
            raise KeyboardInterrupt
        return super().task(name, total, unit)

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def interrupting() -> Callable[[int], Interrupting]:
    """Makes a progress that interrupts whoever shows it after so many evaluated splits."""
    return Interrupting
