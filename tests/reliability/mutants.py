"""Test the tests: change one operator, name or text at a time in the rooms of numbers, for a random sample.

    python tests/reliability/mutants.py --sample 400 --seed 0 --least 0.85

`[tool.mutmut]` in pyproject.toml names the rooms and their tests. There are about 22,000 mutants; a sample of 400, half
an hour on two cores, gives the share that the tests notice to within 4 %. Mutants that survive are printed with their
change; the exit code is 1 if fewer than `--least` are noticed. Run from the repository's root.

A mutant is tested by the tests that called its function while they ran: what a test module computes when it is imported
counts for none of them, and what a shared fixture computes for the first test that uses it.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("mutmut")
FIRST = "ckpt_probe.metrics.covariance.x_line_through__mutmut_1"
SURVIVED, UNTESTED = {0}, {5, 33}
"""Exit codes of mutmut: the tests passed, and (5 or 33) no test reaches the mutant."""


def outcomes() -> dict[str, int | None]:
    """Return the exit code of the tests for each mutant, None if it was not run."""
    codes: dict[str, int | None] = {}
    for file in sorted(Path("mutants").rglob("*.meta")):
        codes |= json.loads(file.read_text())["exit_code_by_key"]
    return codes


def run(names: list[str]) -> None:
    """Make mutmut write all mutants and run some of them; exit with the end of its output if it fails."""
    done = subprocess.run([PROGRAM, "run", *names], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stdout + done.stderr)[-4000:])


def main() -> int:
    """Draw the sample, run it, and print the mutants that survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.85)
    arguments = parser.parse_args()
    run([FIRST])
    known = sorted(outcomes())
    chosen = random.Random(arguments.seed).sample(known, min(arguments.sample, len(known)))
    run(chosen)
    codes = outcomes()
    for name in chosen:
        if codes[name] in SURVIVED | UNTESTED:
            difference = subprocess.run([PROGRAM, "show", name], check=False, capture_output=True, text=True).stdout
            changes = [
                line for line in difference.splitlines() if line[:1] in {"-", "+"} and line[:3] not in {"---", "+++"}
            ]
            print(f"{name}{' (no test)' if codes[name] in UNTESTED else ''}", *changes, sep="\n")
    noticed = sum(codes[name] not in SURVIVED | UNTESTED | {None} for name in chosen)
    print(f"{noticed} of {len(chosen)} mutants noticed, {noticed / len(chosen):.1%}; {len(known)} there are")
    return 0 if noticed >= arguments.least * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
