"""Tests of reading batches ahead: the order, and the number of threads of the caller."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ckpt_probe.data import ready_batches


class Recorded:
    """Six samples, which record the number of torch's threads while each batch is made."""

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
def test_batches_for_the_cpu_are_made_in_one_thread_and_the_caller_keeps_its_threads() -> None:
    split, in_new_thread = Recorded(), []
    with ready_batches(split, 4) as batches:
        read = [(inputs.flatten().tolist(), labels.tolist()) for inputs, labels in batches]
        in_caller = torch.get_num_threads()
    after = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    after.start()
    after.join()
    assert read == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5], [4, 5])]
    assert (split.threads, in_caller, in_new_thread) == ([1, 1], 3, [3])


class Interrupted(Recorded):
    """Samples that send SIGINT while the second batch is read, which takes longer."""

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        samples = super().batch(indices)
        if len(self.threads) == 2:
            self.reading.set()
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            self.read = True
        return samples

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.read = threading.Event(), False


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_the_current_batch_is_read() -> None:
    split = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        stop_while_reading(split)
    assert split.read


def stop_while_reading(split: Interrupted) -> None:
    with ready_batches(split, 2) as batches:
        next(batches)
        split.reading.wait()
