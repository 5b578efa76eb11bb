"""Records as TensorBoard's event files, read back by TensorBoard's own reader."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.reporting import write_event_files


def records(*splits: str) -> list[dict]:
    return [
        {"checkpoint": f"s{s}", "step": s, "split": split, "class.mir": s / 8, "reference.mir": 0.75, "nc1.pinv": nc1}
        for s, nc1 in ((0, 4.0), (2, None), (4, 1.0))
        for split in splits
    ]


def read(directory: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Run → tag → (step, value)."""
    found = {}
    for run in sorted({file.parent for file in directory.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(run))
        events.Reload()
        tags = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        found[run.relative_to(directory).as_posix()] = tags
    return found


def test_a_run_for_each_split_and_one_at_collapse(tmp_path: Path) -> None:
    values, notes = write_event_files({"run": records("train", "test")}, tmp_path / "events")
    mir, nc1 = [(0, 0.0), (2, 0.25), (4, 0.5)], [(0, 4.0), (4, 1.0)]
    assert read(tmp_path / "events") == {
        "train": {"class/mir": mir, "nc1/pinv": nc1},
        "test": {"class/mir": mir, "nc1/pinv": nc1},
        "at-collapse": {"class/mir": [(0, 0.75), (2, 0.75), (4, 0.75)], "nc1/pinv": [(0, 0.0), (4, 0.0)]},
    }
    assert values == 10
    assert notes == ["run: 2 values are missing"]


def test_conditions_are_runs_of_their_own_and_no_name_leads_out(tmp_path: Path) -> None:
    write_event_files({"a": records("../../out"), "b/c": records("train")}, tmp_path / "events")
    assert set(read(tmp_path / "events")) == {"a/_.._out", "a/at-collapse", "b_c/train", "b_c/at-collapse"}
    assert [file.name for file in tmp_path.iterdir()] == ["events"]


def test_other_places_of_a_record_are_part_of_its_run(tmp_path: Path) -> None:
    write_event_files(
        {"run": [{"step": 1, "split": "test", "class": c, "variance": c / 2} for c in (0, 1)]}, tmp_path / "e"
    )
    assert set(read(tmp_path / "e")) == {"test/class-0", "test/class-1", "at-collapse"}


def test_what_has_no_step_is_counted_and_what_is_twice_is_refused(tmp_path: Path) -> None:
    held = records("test")
    _, notes = write_event_files({"run": [*held, {"split": "test", "class.mir": 1.0}]}, tmp_path / "events")
    assert notes[0] == "run: 1 of 4 records have no step, left out"
    with pytest.raises(DataError, match=r"test: class\.mir has several values at step 0; .* \(NAME=FILE\)"):
        write_event_files({"run": held * 2}, tmp_path / "twice")
    with pytest.raises(DataError, match="no record has a step and a number"):
        write_event_files({"run": [{"alpha": 0.5, "loss": 1.0}]}, tmp_path / "none")
    assert [file.name for file in tmp_path.iterdir()] == ["events"]


def test_a_directory_that_exists_and_a_package_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_event_files({"run": records("test")}, tmp_path / "events")
    write_event_files({"run": records("test")}, tmp_path / "events", overwrite=True)
    assert "test" in read(tmp_path / "events")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r'pip install "ckpt-probe\[tensorboard\]"'):
        write_event_files({"run": records("test")}, tmp_path / "others")
