"""Tests of a Dask cluster on loopback: killed workers lose no result, a killed scheduler gives an error of one line."""

import os
import shutil
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckpt_probe
from ckpt_probe.analysis import analyze
from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.scheduling import Workers, in_turn, results
from ckpt_probe.training import train
from ckpt_probe.trajectories import weights

NAMES = [f"step-{number}" for number in range(8)]


class Gate:
    """A directory in which gated tasks state their processes and wait until it is opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.items = [(number, str(directory)) for number in range(len(NAMES))]

    def at_work(self) -> set[int]:
        """Return the processes that have begun a task."""
        return {int(file.stem.partition("-")[2]) for file in self.directory.glob("*.began")}

    def open(self) -> None:
        (self.directory / "open").touch()


def test_results_are_complete_after_two_workers_are_killed(tasks: ModuleType, cluster: Any, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    cluster.start(3)

    def kill_workers() -> None:
        try:
            cluster.until(lambda: len(gate.at_work()) == 3)
            first, second, _ = gate.at_work()
            cluster.kill_process(first)
            cluster.kill_process(second)
        finally:
            gate.open()

    killer = threading.Thread(target=kill_workers)
    killer.start()
    staff = Workers(scheduler=cluster.scheduler_file)
    values = list(in_turn(results(tasks.gated, gate.items, names=NAMES, workers=staff, say=print)))
    killer.join()
    assert values == [2 * number for number in range(len(NAMES))]
    assert cluster.running() == 2

    # The cluster still works; relative paths refer to the client's directory.
    (tmp_path / "note.txt").write_text("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert dict(results(tasks.relative, ["note.txt"], names=["a"], workers=staff, say=print)) == {0: "here"}
        # Records of ranges of rows equal those of a single process.
        with h5py.File("step-1.h5", "w") as file:
            generator = np.random.default_rng(0)
            file["train/features"], file["train/labels"] = generator.normal(size=(60, 5)), np.arange(60) % 3
            file["classifier/weights"] = generator.normal(size=(3, 5))
        shared = analyze("step-1.h5", rows_per_task=25, scheduler=cluster.scheduler_file)
        assert list(shared) == list(analyze("step-1.h5", rows_per_task=25))
        # The weights of a series are shared out by checkpoint.
        Path("run").mkdir()
        for step in range(4):
            tensors = {"a.weight": generator.normal(size=(30, 40)), "b.weight": generator.normal(size=(5, 30))}
            save_file({name: torch.tensor(value) for name, value in tensors.items()}, f"run/step-{step}.safetensors")
        for by in ("network", "tensor"):
            alone, shared = (list(weights("run", by=by, scheduler=at)) for at in (None, cluster.scheduler_file))
            assert len(alone) == (4 if by == "network" else 8)
            for record, shared_record in zip(alone, shared, strict=True):
                assert record.keys() == shared_record.keys()
                for name in ("motion.norm", "spectrum.norm"):
                    assert shared_record[name] == pytest.approx(record[name], rel=1e-9)


def test_a_killed_scheduler_is_an_error_of_one_line(
    tasks: ModuleType, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate")
    cluster.start(1)

    def kill_scheduler() -> None:
        cluster.until(gate.at_work)
        cluster.kill("scheduler")

    killer = threading.Thread(target=kill_scheduler)
    killer.start()
    staff = Workers(scheduler=cluster.scheduler_file)
    with pytest.raises(DataError, match=r"scheduler was lost after 0 tasks.*run the same command again"):
        list(results(tasks.gated, gate.items, names=NAMES, workers=staff, say=print))
    killer.join()
    # The scheduler's file still exists, but its address does not answer, however long one waits.
    monkeypatch.setattr("ckpt_probe.scheduling.backends.CONNECT_SECONDS", 0.5)
    with pytest.raises(UsageError, match="no scheduler answers there"):
        list(results(tasks.double, [1], names=["a"], workers=staff, say=print))


def test_a_task_that_kills_its_workers_is_an_error_after_the_others_are_done(tasks: ModuleType, cluster: Any) -> None:
    cluster.start(4, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    done: dict[int, int] = {}
    staff = Workers(scheduler=cluster.scheduler_file)
    with pytest.raises(DataError, match=r"^step-2: its worker process was killed 3 times"):
        done.update(results(tasks.deadly, [0, 1, 2, 3], names=NAMES, workers=staff, say=print))
    assert done == {0: 0, 1: 2, 3: 6}


def test_a_late_worker_with_other_code_is_refused(tasks: ModuleType, cluster: Any, tmp_path: Path) -> None:
    other_version = tmp_path / "other_version"
    shutil.copytree(Path(ckpt_probe.__file__).parent, other_version / "ckpt_probe")
    with (other_version / "ckpt_probe" / "errors.py").open("a", encoding="utf-8") as file:
        file.write("# other code\n")
    cluster.start(0)

    def join(message: str) -> None:
        if "no worker yet" in message:
            cluster.join(
                "late", PYTHONPATH=os.pathsep.join([str(other_version), str(tmp_path), os.environ["PYTHONPATH"]])
            )

    staff = Workers(scheduler=cluster.scheduler_file)
    with pytest.raises(UsageError, match=r"has another ckpt-probe \(.* / here .*\); install the same"):
        list(results(tasks.double, [1, 2], names=["a", "b"], workers=staff, say=join))


def test_a_worker_of_many_threads_runs_one_task_at_a_time(tasks: ModuleType, cluster: Any) -> None:
    cluster.start(1, threads=4)
    messages: list[str] = []
    staff = Workers(scheduler=cluster.scheduler_file)
    # A worker that has returned a result has joined, so that the next call counts it from its start.
    assert dict(results(tasks.double, [1], names=["a"], workers=staff, say=print)) == {0: 2}
    counts = dict(
        results(tasks.overlapping, list(range(8)), names=list("abcdefgh"), workers=staff, say=messages.append)
    )
    assert set(counts.values()) == {1}
    assert any("a worker has 4 threads" in text for text in messages)


def test_a_file_opened_for_one_call_is_not_used_for_the_next(
    tasks: ModuleType, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start(1)
    staff, contents = Workers(scheduler=cluster.scheduler_file), []
    directory = tmp_path / "here"
    for text in ("first", "second", "third"):
        # The directory is also replaced, while a worker's working directory may still be the removed one.
        directory.mkdir()
        (directory / "note.txt").write_text(text)
        monkeypatch.chdir(directory)
        contents += list(results(tasks.opened, ["note.txt"], names=["a"], workers=staff, say=print))
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(directory)
    assert contents == [(0, "first"), (0, "second"), (0, "third")]


def test_extraction_by_ranges_gives_the_same_dump_after_a_worker_is_killed(cluster: Any, tmp_path: Path) -> None:
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [8]}},
        "training": {"steps": 2},
        "checkpoints": {"steps": [2]},
    }
    train(TrainingConfig.model_validate(settings), tmp_path / "run", device="cpu")
    cluster.start(2)
    options = {"batch_size": 16, "device": "cpu", "splits": ["train"]}
    parts = tmp_path / "shared"

    def kill_worker() -> None:
        cluster.until(lambda: any(parts.glob(".*.parts/*.safetensors")))
        cluster.kill("worker-0")

    killer = threading.Thread(target=kill_worker)
    killer.start()
    scheduler = cluster.scheduler_file
    extract_series(tmp_path / "run", parts, rows_per_task=16, scheduler=scheduler, **options)
    killer.join()
    extract_series(tmp_path / "run", tmp_path / "single", **options)
    names = sorted(file.name for file in (tmp_path / "single").iterdir())
    assert sorted(file.name for file in parts.iterdir()) == names
    for name in names:
        with h5py.File(parts / name) as shared, h5py.File(tmp_path / "single" / name) as single_process:
            for array in ("features", "labels", "logits"):
                assert np.array_equal(shared[f"train/{array}"], single_process[f"train/{array}"])
