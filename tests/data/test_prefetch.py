"""Batches made ready beside a model: in order, and without taking its threads away."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ckpt_probe.data import ready_batches


class Watched:
    """Six samples, and how many threads torch had as a batch of them was made."""

    def __init__(self) -> None:
        self.labels = torch.arange(6)
        self.threads: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        self.threads.append(torch.get_num_threads())
        return self.labels[indices, None].float(), self.labels[indices]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_a_batch_for_the_cpu_is_made_in_one_thread_and_nothing_else_is_slowed() -> None:
    split, elsewhere = Watched(), []
    with ready_batches(split, 4) as batches:
        found = [(inputs.flatten().tolist(), labels.tolist()) for inputs, labels in batches]
        here = torch.get_num_threads()
    after = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    after.start()
    after.join()
    assert found == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5], [4, 5])]
    assert (split.threads, here, elsewhere) == ([1, 1], 3, [3])


class Interrupted(Watched):
    """Ctrl-C comes while its second batch is read, which takes a moment more."""

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        found = super().batch(indices)
        if len(self.threads) == 2:
            self.reading.set()
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            self.read = True
        return found

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.read = threading.Event(), False


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_batch_that_is_read() -> None:
    split = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        left_while_reading(split)
    assert split.read


def left_while_reading(split: Interrupted) -> None:
    with ready_batches(split, 2) as batches:
        next(batches)
        split.reading.wait()
