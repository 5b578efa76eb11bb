"""Mutation testing by a sample: operators of metrics/, moments/, alignment/ and merging/ changed one at a time.

    python tests/reliability/mutants.py --sample 400 --seed 0 --least 0.85

All of them are about nine thousand, many hours; a sample of 400 tells the share that tests notice to within 4 %. What
survives is printed with its change; exit 1 where fewer than `--least` are noticed. Run from the repository's root.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("mutmut")
FIRST = "ckpt_probe.metrics.regression.x_line_through__mutmut_1"
SURVIVED, UNTESTED = {0}, {5, 33}
"""Exit codes that mutmut keeps: of its tests, and 5 or 33 where no test reaches a mutant."""


def outcomes() -> dict[str, int | None]:
    """How the tests of each mutant ended, None where it was not run."""
    found: dict[str, int | None] = {}
    for file in sorted(Path("mutants").rglob("*.meta")):
        found |= json.loads(file.read_text())["exit_code_by_key"]
    return found


def run(names: list[str]) -> None:
    """Have mutmut make all mutants, and run some."""
    subprocess.run([PROGRAM, "run", *names], check=False, stdout=subprocess.DEVNULL)


def main() -> int:
    """Draw, run, print what survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.85)
    asked = parser.parse_args()
    run([FIRST])
    known = sorted(outcomes())
    chosen = random.Random(asked.seed).sample(known, min(asked.sample, len(known)))
    run(chosen)
    found = outcomes()
    for name in chosen:
        if found[name] in SURVIVED | UNTESTED:
            shown = subprocess.run([PROGRAM, "show", name], check=False, capture_output=True, text=True).stdout
            changes = [line for line in shown.splitlines() if line[:1] in {"-", "+"} and line[:3] not in {"---", "+++"}]
            print(f"{name}{' (no test)' if found[name] in UNTESTED else ''}", *changes, sep="\n")
    noticed = sum(found[name] not in SURVIVED | UNTESTED | {None} for name in chosen)
    print(f"{noticed} of {len(chosen)} mutants noticed, {noticed / len(chosen):.1%}; {len(known)} there are")
    return 0 if noticed >= asked.least * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
