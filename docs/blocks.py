"""The command blocks of a page: the test suite runs most of them, and `make studies` those that are a study.

A ```sh block runs under `bash -euo pipefail`, a ```python block in a fresh interpreter. A comment on the line before a
block marks it: `<!-- set-up -->` installs something, `<!-- slow -->` takes minutes, `<!-- study -->` is a study's own
commands, on a machine with its data. A line `<!-- part -->` divides a page into parts that need no files of each other.

Run: python docs/blocks.py docs/studies/collapse.md …      the study blocks of the pages, one after the other, from here
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?:<!-- (?P<mark>[\w-]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins at, its mark where it has one, and its part."""

    language: str
    code: str
    line: int
    mark: str | None = None
    part: int = 0


def blocks(document: Path) -> list[Block]:
    """Every block of a page, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            m["language"],
            m["code"],
            text.count("\n", 0, m.start()) + 1,
            m["mark"],
            text.count("<!-- part -->\n", 0, m.start()),
        )
        for m in FENCE.finditer(text)
    ]


def command(block: Block) -> list[str]:
    """The command line that runs a block."""
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    return shell if block.language == "sh" else [sys.executable, "-c", block.code]


def environment() -> dict[str, str]:
    """The caller's environment, this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "120"}


def main(pages: list[str]) -> None:
    """Run the study blocks of some pages. Stops at the first command that fails; run again to go on from there."""
    for page in pages:
        began = time.monotonic()
        for block in blocks(Path(page)):
            if block.mark == "study":
                print(f"{page}, line {block.line}", flush=True)
                started = time.monotonic()
                done = subprocess.run(command(block), env=environment(), check=False)
                print(f"{page}, line {block.line}: {time.monotonic() - started:.0f} s", flush=True)
                if done.returncode:
                    sys.exit(f"{page}, line {block.line}: exit {done.returncode}")
        print(f"{page}: {time.monotonic() - began:.0f} s in all", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
