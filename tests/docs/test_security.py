"""Checks that the tests which docs/security.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("## What is not promised")[0]


def test_every_promise_names_tests_that_exist() -> None:
    parts = re.split(r"\n(?=\*\*[A-Z])", PROMISES)[1:]
    assert len(parts) == 8
    files = (ROOT / "tests").rglob("test_*.py")
    functions = {name for file in files for name in re.findall(r"^ *def (\w+)", file.read_text(encoding="utf-8"), re.M)}
    for part in parts:
        tests = re.findall(r"`(test_\w+)`", part)
        assert tests, part
        assert set(tests) <= functions, sorted(set(tests) - functions)
