"""Tasks in this process and in others: all results, in order where asked; failures and killed processes are told."""

from pathlib import Path
from types import ModuleType

import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.scheduling import Team, Workers, in_turn, results

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize("count", [1, 2])
def test_each_item_has_its_result_in_turn(tasks: ModuleType, count: int) -> None:
    found = results(tasks.double, [5, 6, 7, 8], names=NAMES, workers=Workers(count), say=print)
    assert list(in_turn(found)) == [10, 12, 14, 16]


def test_here_a_task_runs_when_its_result_is_asked_for_and_an_error_ends_the_work() -> None:
    ran: list[int] = []

    def work(number: int) -> int:
        ran.append(number)
        if number == 1:
            raise DataError("row 7 is NaN")
        return number

    found = results(work, [0, 1, 2], names=NAMES, workers=Workers(), say=print)
    assert ran == []
    assert next(found) == (0, 0)
    assert ran == [0]
    with pytest.raises(DataError, match=r"^row 7 is NaN$"):
        next(found)
    assert ran == [0, 1]


def test_what_fails_elsewhere_is_told_by_name_when_the_others_are_done(tasks: ModuleType) -> None:
    said: list[str] = []
    found = results(tasks.failing, [0, 1, 2, 3], names=NAMES, workers=Workers(2), say=said.append)
    done: list[tuple[int, int]] = []
    with pytest.raises(DataError) as error:
        done.extend(found)
    assert sorted(done) == [(0, 0), (2, 4)]
    assert str(error.value) == "2 of 4 failed, the others are done: b: row 7 is NaN, d: KeyError: 'of the program'"
    # An error of the program comes with its traceback.
    assert any(line.startswith("d: Traceback") and "in failing" in line for line in said)


def test_one_error_elsewhere_reads_as_it_does_here(tasks: ModuleType) -> None:
    found = results(tasks.failing, [0, 1, 2], names=NAMES, workers=Workers(2), say=print)
    with pytest.raises(DataError, match=r"^row 7 is NaN$"):
        list(found)


def test_a_task_that_kills_its_process_is_set_aside_and_costs_no_other(tasks: ModuleType) -> None:
    done: list[tuple[int, int]] = []
    told = r"^c: its worker process was killed 3 times"
    found = results(tasks.deadly, [0, 1, 2, 3], names=NAMES, workers=Workers(2), say=print)
    with pytest.raises(DataError, match=told):
        done.extend(found)
    assert sorted(done) == [(0, 0), (1, 2), (3, 6)]


@pytest.mark.parametrize("count", [1, 2])
def test_an_item_of_another_process_is_tried_again_after_the_others(
    tasks: ModuleType, tmp_path: Path, count: int
) -> None:
    said: list[str] = []
    items = [(number, str(tmp_path)) for number in range(3)]
    found = dict(results(tasks.busy_at_first, items, names=NAMES, workers=Workers(count), say=said.append))
    assert found == {0: 0, 1: 2, 2: 4}
    assert said == ["a: process 1 of elsewhere is working on it; continuing with the others"]


def test_workers_that_have_no_meaning() -> None:
    with pytest.raises(UsageError, match="`workers=0`: expected at least 1"):
        Workers(0)
    with pytest.raises(UsageError, match="`workers` and `scheduler` exclude each other"):
        Workers(2, "tcp://127.0.0.1:1")


def test_a_team_keeps_its_processes_from_one_call_to_the_next(tasks: ModuleType) -> None:
    with Team(Workers(2), print) as team:
        seen = [set(dict(results(tasks.process, range(8), names=list("abcdefgh"), workers=team, say=print)).values())]
        seen.append(
            set(dict(results(tasks.process, range(8), names=list("abcdefgh"), workers=team, say=print)).values())
        )
    assert len(seen[0] | seen[1]) <= 2
    # What is cut short leaves nothing behind that the next call could take for its own.
    with Team(Workers(2), print) as team:
        found = results(tasks.double, [5, 6, 7, 8], names=NAMES, workers=team, say=print)
        next(found)
        found.close()
        assert list(in_turn(results(tasks.double, [1, 2], names=NAMES, workers=team, say=print))) == [2, 4]
