"""Tests of a series extracted by several processes or calls at once: each dump is written once and is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.progress import NullProgress
from ckpt_probe.scheduling import claimed


class ActingProgress(NullProgress):
    """Progress that collects its messages and calls a function at each of them."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.messages: list[str] = []
        self.act = act

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.act()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    """Train a run of three checkpoints, and return its directory."""
    return train_digits(tmp_path_factory.mktemp("run"), [5, 10])


def arrays(dump: Path) -> dict[str, np.ndarray]:
    datasets: dict[str, np.ndarray] = {}
    with h5py.File(dump) as file:
        file.visititems(
            lambda name, item: datasets.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return datasets


def same_dumps(first: Path, second: Path) -> bool:
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    for name in names:
        left, right = arrays(first / name), arrays(second / name)
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])
    return len(names) == 3


def test_two_processes_write_the_dumps_of_one(run: Path, tmp_path: Path) -> None:
    alone = extract_series(run, tmp_path / "alone", splits=["test"], device="cpu")
    shared = extract_series(run, tmp_path / "shared", splits=["test"], device="cpu", workers=2)
    assert (shared.written, shared.skipped) == (alone.written, ())
    assert same_dumps(tmp_path / "alone", tmp_path / "shared")
    repeated = extract_series(run, tmp_path / "shared", splits=["test"], device="cpu", workers=2)
    assert (repeated.written, repeated.skipped) == ((), alone.written)


def test_a_checkpoint_of_another_call_is_left_to_the_end_and_not_extracted_twice(run: Path, tmp_path: Path) -> None:
    single, shared = tmp_path / "single", tmp_path / "shared"
    extract_series(run, single, splits=["test"], device="cpu")
    holding = claimed(shared / "step-000000.h5")
    assert holding.__enter__() is None

    def finish() -> None:
        # Meanwhile the other call finishes its dump and releases its claim.
        if not (shared / "step-000000.h5").exists():
            (shared / "step-000000.h5").write_bytes((single / "step-000000.h5").read_bytes())
            holding.__exit__(None, None, None)

    progress = ActingProgress(finish)
    summary = extract_series(run, shared, splits=["test"], device="cpu", progress=progress)
    assert summary.skipped == ("step-000000",)
    assert len(summary.written) == 2
    assert "step-000000: process" in progress.messages[0]
    assert "is working on it; continuing with the others" in progress.messages[0]
    assert same_dumps(single, shared)


def test_a_damaged_checkpoint_is_an_error_with_several_workers(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    copied.mkdir()
    for file in (run / "checkpoints").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    damaged = copied / "step-000005.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"step-000005\.safetensors"):
        extract_series(copied, tmp_path / "dumps", splits=["test"], device="cpu", workers=2)


def test_workers_and_a_scheduler_exclude_each_other(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        extract_series(run, tmp_path / "dumps", workers=2, scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "dumps").exists()
