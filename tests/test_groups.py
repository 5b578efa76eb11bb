"""Tests of groups of runs from directories, trees of directories, names and patterns."""

from pathlib import Path

import pytest

from ckpt_probe.analysis.comparison.groups import open_groups
from ckpt_probe.analysis.series import is_recorded
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.groups import GroupedRun, find_runs, named_paths


def is_run(path: Path) -> bool:
    return path.suffix == ".run" or (path / "weights").is_file()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create runs of two recipes with two and three seeds in the working directory, and return it."""
    for name in ("plain/seed-2", "plain/seed-10", "decay/seed-2", "decay/seed-10", "decay/seed-3"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "weights").touch()
    (tmp_path / "runs" / "plain" / "notes.txt").touch()
    (tmp_path / "runs" / ".hidden").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs_of(sources, messages: list[str] | None = None) -> list[tuple[str, str | None, str | None]]:
    runs = find_runs(sources, is_run, "a run", (messages if messages is not None else []).append)
    return [(Path(run.path).as_posix(), run.group, run.seed) for run in runs]


def test_a_tree_has_groups_and_a_directory_of_runs_has_seeds(tree: Path) -> None:
    messages: list[str] = []
    decay = [(f"runs/decay/seed-{seed}", "decay", f"seed-{seed}") for seed in (2, 3, 10)]
    plain = [(f"runs/plain/seed-{seed}", "plain", f"seed-{seed}") for seed in (2, 10)]
    assert runs_of("runs", messages) == [*decay, *plain]
    assert runs_of(Path("runs/decay"), messages) == decay
    assert runs_of(["runs/plain", "runs/decay"], messages) == [*plain, *decay]
    assert messages == ["runs/plain: 1 names are neither runs nor groups and were left out: notes.txt"] * 2
    assert runs_of(["a=runs"])[0][1:] == ("a/decay", "seed-2")
    assert runs_of(["a=runs/plain"])[0][1:] == ("a", "seed-2")
    assert runs_of({"a": "runs/plain"}) == runs_of(["a=runs/plain"])


def test_a_file_of_records_alone_in_a_directory_is_a_group_beside_groups_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = [f"runs/{name}" for name in ("a/s0", "b/s0", "b/s1", "c/s0", "c/s1", "d/s0")]
    for seed in seeds:
        Path(seed).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{seed}.jsonl").write_text('{"step": 1, "split": "test", "accuracy": 0.5}\n')
    found = find_runs("runs", is_recorded, "a run")
    assert [f"runs/{run.name}" for run in found] == seeds
    assert [(group.path.name, list(group.members)) for group in open_groups(["runs"])] == [
        ("a", ["s0"]),
        ("b", ["s0", "s1"]),
        ("c", ["s0", "s1"]),
        ("d", ["s0"]),
    ]


def test_a_single_run_has_no_group_and_several_runs_have_their_names(tree: Path) -> None:
    assert runs_of("runs/plain/seed-2") == [("runs/plain/seed-2", None, None)]
    assert runs_of("x=runs/plain/seed-2") == [("runs/plain/seed-2", "x", None)]
    assert [run[1:] for run in runs_of(["runs/plain/seed-2", "runs/decay/seed-2"])] == [
        ("plain/seed-2", None),
        ("decay/seed-2", None),
    ]
    assert GroupedRun("a", "plain", "seed-2").labels == {"group": "plain", "seed": "seed-2"}
    assert GroupedRun("a").labels == {}
    assert GroupedRun("a", "plain", "seed-2").name == "plain/seed-2"


def test_runs_of_a_pattern_or_a_list_are_the_seeds_of_a_group(tree: Path) -> None:
    assert [run[1:] for run in runs_of(["a=runs/*/seed-2", "b=runs/plain/seed-10,runs/decay/seed-10"])] == [
        ("a", "decay/seed-2"),
        ("a", "plain/seed-2"),
        ("b", "plain/seed-10"),
        ("b", "decay/seed-10"),
    ]
    assert [run[1:] for run in runs_of("runs/plain/seed-*")] == [("plain", "seed-2"), ("plain", "seed-10")]
    (tree / "x=1,2.run").touch()
    assert named_paths("x=1,2.run") == (None, [Path("x=1,2.run")])
    assert named_paths("s3://bucket/a=b") == (None, ["s3://bucket/a=b"])
    assert named_paths("a=s3://bucket/x,y") == ("a", ["s3://bucket/x,y"])


def test_invalid_sources_are_refused_with_the_reason(tree: Path) -> None:
    for sources, error, message in (
        (["a=none/*"], UsageError, "none/*: no file matches this pattern"),
        (["a=runs/plain", "a=runs/decay"], UsageError, "two sources are called a; name each source once"),
        (["a=runs/plain", "b=runs/plain/seed-2"], UsageError, "seed-2; name each source once"),
        (["a=runs/plain/*"], DataError, "runs/plain/notes.txt: not a run; expected a run"),
        ([], UsageError, "nothing to read; expected a run"),
    ):
        with pytest.raises(error) as raised:
            find_runs(sources, is_run, "a run", print)
        assert message in str(raised.value)
    # A missing path is returned: opening it reports the reason.
    assert runs_of("nowhere") == [("nowhere", None, None)]
    (tree / "runs" / "plain" / "gone").symlink_to("nothing")
    with pytest.raises(DataError, match="gone: a broken symbolic link"):
        runs_of("runs")
