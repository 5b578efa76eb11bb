"""Texts from untrusted files which a page or a terminal might interpret as markup or control characters."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

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
