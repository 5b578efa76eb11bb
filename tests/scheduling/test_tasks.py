"""Tests of tasks in this process and in others: all results, in order if requested; failures and killed processes."""

import time
from pathlib import Path
from types import ModuleType

import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.scheduling import Failed, Team, Workers, in_turn, joint_error, results
from ckpt_probe.scheduling.backends import Processes

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("count", [1, 2])
def test_results_are_in_the_order_of_the_items(tasks: ModuleType, count: int) -> None:
    outcomes = results(tasks.double, [5, 6, 7, 8], names=NAMES, workers=Workers(count), say=print)
    assert list(in_turn(outcomes)) == [10, 12, 14, 16]


def test_a_single_process_runs_tasks_lazily_and_stops_at_an_error() -> None:
    ran: list[int] = []

    def work(number: int) -> int:
        ran.append(number)
        if number == 1:
            raise DataError("row 7 is NaN")
        return number

    outcomes = results(work, [0, 1, 2], names=NAMES, workers=Workers(), say=print)
    assert ran == []
    assert next(outcomes) == (0, 0)
    assert ran == [0]
    with pytest.raises(DataError, match=r"^row 7 is NaN$"):
        next(outcomes)
    assert ran == [0, 1]


def test_failures_in_worker_processes_are_listed_after_the_others_are_done(tasks: ModuleType) -> None:
    messages: list[str] = []
    outcomes = results(tasks.failing, [0, 1, 2, 3], names=NAMES, workers=Workers(2), say=messages.append)
    done: list[tuple[int, int]] = []
    with pytest.raises(DataError) as error:
        done.extend(outcomes)
    assert sorted(done) == [(0, 0), (2, 4)]
    assert str(error.value) == "2 of 4 failed, the others are done: b: row 7 is NaN; d: KeyError: 'of the program'"
    # An unexpected exception is reported with its traceback.
    assert any(line.startswith("d: Traceback") and "in failing" in line for line in messages)


def test_a_single_error_of_a_worker_has_its_original_message(tasks: ModuleType) -> None:
    outcomes = results(tasks.failing, [0, 1, 2], names=NAMES, workers=Workers(2), say=print)
    with pytest.raises(DataError, match=r"^row 7 is NaN$"):
        list(outcomes)


def test_a_task_that_kills_its_process_does_not_affect_other_tasks(tasks: ModuleType) -> None:
    done: list[tuple[int, int]] = []
    message = r"^c: its worker process was killed 3 times"
    outcomes = results(tasks.deadly, [0, 1, 2, 3], names=NAMES, workers=Workers(2), say=print)
    with pytest.raises(DataError, match=message):
        done.extend(outcomes)
    assert sorted(done) == [(0, 0), (1, 2), (3, 6)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_item_claimed_by_another_process_is_tried_again_after_the_others(
    tasks: ModuleType, tmp_path: Path, count: int
) -> None:
    messages: list[str] = []
    items = [(number, str(tmp_path)) for number in range(3)]
    values = dict(results(tasks.busy_at_first, items, names=NAMES, workers=Workers(count), say=messages.append))
    assert values == {0: 0, 1: 2, 2: 4}
    assert messages == ["a: process 1 of elsewhere is working on it; continuing with the others"]


def test_invalid_numbers_of_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="`workers=0`: expected at least 1"):
        Workers(0)
    with pytest.raises(UsageError, match="`workers` and `scheduler` exclude each other"):
        Workers(2, "tcp://127.0.0.1:1")


def test_a_team_uses_the_same_processes_for_several_calls(tasks: ModuleType) -> None:
    with Team(Workers(2), print) as team:
        processes = [
            set(dict(results(tasks.process, range(8), names=list("abcdefgh"), workers=team, say=print)).values())
        ]
        processes.append(
            set(dict(results(tasks.process, range(8), names=list("abcdefgh"), workers=team, say=print)).values())
        )
    assert len(processes[0] | processes[1]) <= 2
    # Results of an interrupted call do not appear in the next one.
    with Team(Workers(2), print) as team:
        outcomes = results(tasks.double, [5, 6, 7, 8], names=NAMES, workers=team, say=print)
        next(outcomes)
        outcomes.close()
        assert list(in_turn(results(tasks.double, [1, 2], names=NAMES, workers=team, say=print))) == [2, 4]


def test_workers_leave_ctrl_c_to_their_parent_which_ends_them_without_temporary_files(
    tasks: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    workers = Processes(1)
    workers.submit(0, tasks.interrupted, 5)
    assert workers.finished() == [(0, 5)]
    workers.submit(1, tasks.writing, str(tmp_path / "out"))
    while not (tmp_path / "out" / "began").exists():
        time.sleep(0.02)
    workers.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["began"]


def test_a_reason_that_several_items_have_is_stated_once_with_their_files() -> None:
    reason = "no split 'vall'; there are: train, test"
    failed = {f"step-{n}": Failed(f"runs/a/step-{n}.h5: {reason}", ours=True) for n in range(5)}
    files = "runs/a/step-0.h5, runs/a/step-1.h5, runs/a/step-2.h5 and 2 more"
    assert str(joint_error(failed, 5)) == f"5 of 5 failed: {files}: {reason}"
    failed |= {"a": Failed("runs/a/checkpoint.h5: damaged", ours=True), "b": Failed("out of memory", ours=True)}
    assert str(joint_error(failed, 9)) == (
        f"7 of 9 failed, the others are done: {files}: {reason}; runs/a/checkpoint.h5: damaged; b: out of memory"
    )
    assert str(joint_error({"a": failed["a"]}, 2)) == "runs/a/checkpoint.h5: damaged"
