"""Tests of extracting a tree of runs: dumps have the same tree, and records have group and seed."""

from pathlib import Path
from typing import Any

import pytest

import ckpt_probe as cp
from ckpt_probe.checkpoints import CheckpointMetadata, save_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.models import build_model
from ckpt_probe.progress import MessageLog

RUNS = ("plain/seed-0", "plain/seed-1", "decay/seed-0")


def save(run: Path, step: int) -> None:
    """Add a checkpoint to a run."""
    model = build_model("mlp", {"hidden": [4], "input_shape": [1, 8, 8], "classes": 10})
    metadata = CheckpointMetadata(
        model="mlp", model_arguments={"hidden": [4]}, data="digits", data_arguments={}, step=step
    )
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_checkpoint(run / "checkpoints" / f"step-{step:03}.safetensors", model.state_dict(), metadata)


class Growth(MessageLog):
    """A tree of runs that grows whenever a dump is written."""

    def __init__(self, runs: Path, later: dict[str, list[tuple[str, int]]]) -> None:
        super().__init__()
        self._runs, self._later = runs, later

    def message(self, text: str) -> None:
        super().message(text)
        for dump in [name for name in self._later if text.endswith(f"{name}.h5: written")]:
            for run, step in self._later.pop(dump):
                save(self._runs / run, step)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name in RUNS:
        for step in (1, 20):
            save(root / "runs" / name, step)
    summary = cp.extract_series(root / "runs", root / "dumps", splits="test", limit=60, device="cpu")
    assert set(summary.written) == {f"{name}/step-{step:03}" for name in RUNS for step in (1, 20)}
    second = cp.extract_series(root / "runs", root / "dumps", splits="test", limit=60, device="cpu")
    assert (second.written, set(second.skipped)) == ((), set(summary.written))
    return root / "dumps"


def test_dumps_have_the_tree_of_their_runs(dumps: Path) -> None:
    files = {file.relative_to(dumps).as_posix() for file in dumps.rglob("*.h5")}
    assert files == {f"{name}/step-{step:03}.h5" for name in RUNS for step in (1, 20)}
    alone = cp.extract_series(dumps.parent / "runs" / "plain", dumps.parent / "of-seeds", splits="test", limit=60)
    assert alone.written[0] == "seed-0/step-001"


def test_a_tree_is_followed_while_runs_grow_and_appear(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    later = {
        "plain/seed-0/step-001": [("decay/seed-0", 1), ("plain/seed-1", 1)],
        "plain/seed-1/step-001": [("plain/seed-0", 20), ("plain/seed-1", 20)],
        "plain/seed-1/step-020": [("decay/seed-0", 20)],
    }
    progress = Growth(runs, later)
    save(runs / "plain" / "seed-0", 1)
    chosen: dict[str, Any] = {"splits": "test", "limit": 60, "device": "cpu"}
    followed = cp.extract_series(
        runs, tmp_path / "dumps", follow=True, until=20, every=0.01, progress=progress, **chosen
    )
    expected = {f"{name}/step-{step:03}" for name in RUNS for step in (1, 20)}
    assert (set(followed.written), followed.skipped, followed.stopped) == (expected, (), False)
    second = cp.extract_series(runs, tmp_path / "dumps", **chosen)
    assert (second.written, set(second.skipped)) == ((), expected)
    assert not [text for text in progress.messages if "left out" in text]


def test_records_of_a_tree_have_group_and_seed(dumps: Path) -> None:
    records = cp.analyze(dumps, only="quality", cache=False)
    assert [(r["group"], r["seed"], r["step"]) for r in records] == [
        ("decay", "seed-0", 1),
        ("decay", "seed-0", 20),
        ("plain", "seed-0", 1),
        ("plain", "seed-0", 20),
        ("plain", "seed-1", 1),
        ("plain", "seed-1", 20),
    ]
    assert list(records[0])[:4] == ["group", "seed", "checkpoint", "step"]
    [*alone] = cp.analyze(dumps / "plain" / "seed-1", only="quality", cache=False)
    assert "group" not in alone[0]
    assert alone[0]["loss"] == records[4]["loss"]
    in_groups = cp.analyze({"x": str(dumps / "*" / "seed-0")}, only="quality", cache=False)
    assert [(r["group"], r["seed"]) for r in in_groups][::2] == [("x", "decay/seed-0"), ("x", "plain/seed-0")]
    frame = cp.to_dataframe(records)
    assert frame.groupby(["group", "seed"]).size().to_dict() == {
        ("decay", "seed-0"): 2,
        ("plain", "seed-0"): 2,
        ("plain", "seed-1"): 2,
    }
    rows = cp.analyze(dumps, only="nc1", per_class=True, cache=False)
    assert (rows[0]["group"], rows[0]["seed"], rows[0]["class"]) == ("decay", "seed-0", 0)


def test_an_empty_directory_is_refused_as_without_groups(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dump found"):
        cp.analyze(tmp_path)
