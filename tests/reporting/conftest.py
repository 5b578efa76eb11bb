"""Two short runs on digits with all that a report can show, and texts of files that a page might interpret."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.analysis import analyze
from ckpt_probe.extraction import extract_series
from ckpt_probe.paths import evaluate_path, evaluate_plane
from ckpt_probe.reporting.formats import to_json_line

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


TEXTS = (
    "<script>window.hurt=1</script>",
    '"><img src=x onerror="window.hurt=1">',
    "</script><script>window.hurt=1</script>",
    "<!--<script>",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\u202eevil",
    "=HYPERLINK(1)",
    "&lt;b&gt;&amp;",
    "x" * 10_000,
)


@dataclass(frozen=True)
class Hostile:
    """Such texts, and the arguments of a command that reports files full of them."""

    texts: tuple[str, ...]
    words: list[str]


@pytest.fixture
def hostile(tmp_path: Path) -> Hostile:
    return Hostile(TEXTS, _write(tmp_path))


def _write(folder: Path) -> list[str]:
    """Write records, labels and rows of classes with such names, and return the arguments of a report of them."""
    records = folder / "<img src=x onerror=window.hurt=1>.jsonl"
    lines = [
        {"checkpoint": text, "step": step, "split": "train", "class.mir": 0.5, "reference.mir": 0.9, text: 1.0 + step}
        for step, text in enumerate(TEXTS)
    ]
    # There are more than 12 classes, and every hostile text is the name of one.
    lines += [
        {**{k: line[k] for k in ("checkpoint", "step", "split")}, "class": c, "samples": c + 1}
        for line in lines
        for c in range(len(TEXTS) + 4)
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    labels = folder / "labels.txt"
    labels.write_text("\n".join(TEXTS))
    return [str(records), "--set", f"labels={labels}", "--title", TEXTS[1]]
