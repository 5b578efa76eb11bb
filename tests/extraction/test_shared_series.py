"""A series extracted by several at once: processes, and calls that share a directory; each dump once, the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.progress import NullProgress
from ckpt_probe.scheduling import Claim, claimed


class Listening(NullProgress):
    """Progress whose messages are kept; at each of them something is done."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.messages: list[str] = []
        self.act = act

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.act()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    """A run of three checkpoints."""
    return train_digits(tmp_path_factory.mktemp("run"), [5, 10])


def arrays(dump: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(dump) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same_dumps(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    for name in names:
        left, right = arrays(one / name), arrays(other / name)
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])
    return len(names) == 3


def test_processes_give_the_dumps_of_one(run: Path, tmp_path: Path) -> None:
    alone = extract_series(run, tmp_path / "alone", splits=["test"], device="cpu")
    both = extract_series(run, tmp_path / "both", splits=["test"], device="cpu", workers=2)
    assert (both.written, both.skipped) == (alone.written, ())
    assert same_dumps(tmp_path / "alone", tmp_path / "both")
    again = extract_series(run, tmp_path / "both", splits=["test"], device="cpu", workers=2)
    assert (again.written, again.skipped) == ((), alone.written)


def test_a_checkpoint_that_another_call_is_at_comes_last_and_is_not_done_twice(run: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    extract_series(run, whole, splits=["test"], device="cpu")
    holding = claimed(shared / "step-000000.h5")
    assert isinstance(holding.__enter__(), Claim)

    def finish() -> None:
        # What the other call does meanwhile: it finishes its dump, and lets go.
        if not (shared / "step-000000.h5").exists():
            (shared / "step-000000.h5").write_bytes((whole / "step-000000.h5").read_bytes())
            holding.__exit__(None, None, None)

    said = Listening(finish)
    summary = extract_series(run, shared, splits=["test"], device="cpu", progress=said)
    assert summary.skipped == ("step-000000",)
    assert len(summary.written) == 2
    assert "step-000000: process" in said.messages[0]
    assert "is working on it; continuing with the others" in said.messages[0]
    assert same_dumps(whole, shared)


def test_one_damaged_checkpoint_costs_no_other_where_several_work(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    copied.mkdir()
    for file in (run / "checkpoints").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    damaged = copied / "step-000005.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"step-000005\.safetensors"):
        extract_series(copied, tmp_path / "dumps", splits=["test"], device="cpu", workers=2)


def test_who_does_the_work_is_said_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        extract_series(run, tmp_path / "dumps", workers=2, scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "dumps").exists()
