"""Cost of looking at a large checkpoint: `inspect`, `inspect --statistics`, and reading a tensor of a pickled file.

The file has random float32 tensors of 4096 × 4096, once as safetensors and once written by torch.save. Measured in
turn: `inspect FILE` against starting Python; `inspect FILE --statistics` against reading the file in blocks of 4 MiB,
from memory (the page cache) and, if the system can drop its cache, from the disk; and the resident memory of a process
that opens the pickled file and reads one tensor, above that of one that imports the same code.

Run: python benchmarks/looking.py [--gib 1] [--repeats 5] [--folder DIR]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SIDE = 4096
BLOCK = 4 * 2**20

READ = "import sys\nwith open(sys.argv[1], 'rb', buffering=0) as file:\n    while file.read({block}):\n        pass\n"
OPENED = """
import resource, sys
from pathlib import Path
from ckpt_probe.checkpoints import open_checkpoint
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    float(checkpoint.read(checkpoint.names[-1])[0, 0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def write_files(folder: Path, gib: float) -> tuple[Path, Path]:
    """Write tensors as safetensors and as a pickled file."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    count = max(1, round(gib * 2**30 / (4 * SIDE**2)))
    tensors = {f"layer.{k}.weight": torch.randn(SIDE, SIDE, generator=generator) for k in range(count)}
    save_file(tensors, folder / "large.safetensors")
    torch.save({"state_dict": tensors}, folder / "large.pth")
    return folder / "large.safetensors", folder / "large.pth"


def cost(command: list[str]) -> tuple[float, float]:
    """Return the seconds of a command by the clock and of processor time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians_of_pairs(
    ours: list[str], theirs: list[str], repeats: int, before: Callable[[], None] = lambda: None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return medians of both commands, run in turn after calling `before`: (clock, processor) of each."""
    times = []
    for _ in range(repeats):
        before()
        first = cost(ours)
        before()
        times.append((first, cost(theirs)))
    sides = list(zip(*times, strict=True))
    first, second = ((statistics.median(t[0] for t in side), statistics.median(t[1] for t in side)) for side in sides)
    return first, second


def drop_from_cache(file: Path) -> None:
    """Remove a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    python, command = [sys.executable], [sys.executable, "-m", "ckpt_probe", "inspect"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        safe, pickled = write_files(Path(folder), options.gib)
        print(f"{safe.stat().st_size / 2**30:.2f} GiB")
        for file in (safe, pickled):
            ours, bare = medians_of_pairs([*command, str(file)], [*python, "-c", "pass"], options.repeats)
            excess = f"{ours[0] - bare[0]:.3f} s over starting Python ({ours[1] - bare[1]:.3f} s of the processor)"
            print(f"inspect {file.suffix}: {excess}")
        reading = [*python, "-c", READ.format(block=BLOCK), str(safe)]
        places = {"memory": lambda: None}
        if hasattr(os, "posix_fadvise"):
            places["disk"] = partial(drop_from_cache, safe)
        for source, before in places.items():
            ours, bare = medians_of_pairs([*command, str(safe), "--statistics"], reading, options.repeats, before)
            ratio = f"{bare[0] / ours[0]:.2f} of the speed of reading"
            print(f"--statistics from {source}: {ours[0]:.2f} s, reading alone {bare[0]:.2f} s: {ratio}")
        done = subprocess.run([*python, "-c", OPENED, str(pickled)], check=True, capture_output=True, text=True)
        print(f"one tensor of the pickled file: {int(done.stdout) / 1024:.0f} MiB resident more than the imports take")


if __name__ == "__main__":
    main()
