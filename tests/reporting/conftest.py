"""Two short runs on digits with all that a report can show: dumps, paths, a plane, records."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.analysis import analyze
from ckpt_probe.extraction import extract_series
from ckpt_probe.paths import evaluate_path, evaluate_plane
from ckpt_probe.reporting import to_json_line

STEPS = (0, 10, 30, 60)


@dataclass(frozen=True)
class Study:
    """The files of the runs, which tests only read."""

    root: Path

    @property
    def dumps(self) -> Path:
        return self.root / "dumps" / "a"

    @property
    def sources(self) -> list[str]:
        names = ("dumps/a", "dumps/b", "paths/plain", "paths/aligned", "planes/abc")
        return [str(self.root / name) for name in names]

    @property
    def records(self) -> Path:
        """Return the records of run a, written by `analyze -o`."""
        return self.root / "a.jsonl"


@pytest.fixture(scope="session")
def study(built_once: Callable[..., Path], train_digits: Any) -> Study:
    def build(root: Path) -> None:
        ends = []
        for seed, name in enumerate("ab"):
            train_digits(root / "runs" / name, STEPS, hidden=[10], seed=seed)
            extract_series(root / "runs" / name, root / "dumps" / name, device="cpu")
            ends.append(sorted((root / "runs" / name / "checkpoints").glob("*.safetensors")))
        records = analyze(root / "dumps" / "a")
        (root / "a.jsonl").write_text("".join(to_json_line(record) + "\n" for record in records))
        for name, options in (("plain", {}), ("aligned", {"align": "permutation"})):
            evaluate_path(ends[0][-1], ends[1][-1], root / "paths" / name, points=5, device="cpu", **options)
        evaluate_plane(ends[0][-1], ends[0][1], ends[1][-1], out=root / "planes" / "abc", grid=4, device="cpu")

    return Study(built_once("study", build))


@pytest.fixture(scope="session")
def layered(built_once: Callable[..., Path], train_digits: Any) -> Path:
    """Return dumps of two hidden layers and the penultimate one at four checkpoints."""

    def build(root: Path) -> None:
        train_digits(root / "run", STEPS, hidden=[16, 12, 8])
        extract_series(root / "run", root / "dumps", device="cpu", layers="all", limit=300)

    return built_once("layered", build) / "dumps"
