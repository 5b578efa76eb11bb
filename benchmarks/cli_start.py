"""Seconds of `ckpt-probe --help` and of `import ckpt_probe` beyond those of `python -c pass`, as separate processes.

Run: python benchmarks/cli_start.py [--runs 21]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import ckpt_probe": [sys.executable, "-c", "import ckpt_probe"],
    "ckpt-probe --help": [str(Path(sys.executable).with_name("ckpt-probe")), "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall-clock seconds of a process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Time the commands in turn for several rounds; print each median and its excess over bare Python."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    for command in COMMANDS.values():
        seconds(command)
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(runs)]
    bare = "python -c pass"
    print(f"{os.cpu_count()} cores, {runs} rounds, medians")
    for name in COMMANDS:
        median = statistics.median(times[name] for times in rounds)
        excess = statistics.median(times[name] - times[bare] for times in rounds)
        ratio = statistics.median(times[name] / times[bare] for times in rounds)
        print(f"{name:20} {median * 1000:7.1f} ms   {excess * 1000:+7.1f} ms over bare Python   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
