"""The fuzzer: real files of every format, mutated by a seed, each read in a process of its own with 1 GiB and 10 s.

    python tests/fuzz/fuzzing.py --cases 10000 --seed 0        prints how they ended; exit 1 where one is a finding
    python tests/fuzz/fuzzing.py --replay tests/fuzz/corpus    the files that once were findings
    python tests/fuzz/fuzzing.py --hostile                     files that are made to take memory or time

Memory and time are those of the budget of a file, with as much again for the libraries that read it.

An end is "told" (a CkptProbeError of one line), "the same" (the answer of the whole file), "another" (which only
formats without checksums may give), or a finding: another exception, a crash, no end, or another answer from a file of
ours. What is found is kept with --keep DIRECTORY.
"""

import argparse
import gc
import gzip
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from hostile import KINDS
from specimens import SPECIMENS, Specimen

from ckpt_probe import budget
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.hdf5 import lookover

MEMORY = 2 * budget.MEMORY
SECONDS = round(budget.SECONDS) + 2
HOSTILE = (b"../" * 8, b"/etc/passwd", b"[" * 2000, b'{"a":' * 500, b"9" * 40, b"\xff" * 8, b"=1+1", b"\x1b[2J", b"NaN")


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Data with one to three changes of the kinds that wear, transfer and malice make."""
    held = bytearray(data)
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        size = max(1, len(held))
        place, length = int(random.integers(size)), int(random.integers(1, 33))
        kind = int(random.integers(8))
        if kind <= 1 and held:
            held[place % len(held)] ^= 1 << int(random.integers(8))
        elif kind == 2:
            held[place : place + 1] = bytes([int(random.choice([0, 1, 127, 128, 255]))])
        elif kind == 3:
            held[place : place + length] = random.bytes(length)
        elif kind == 4:
            del held[place : place + length]
        elif kind == 5:
            other = int(random.integers(size))
            held[place:place] = held[other : other + length]
        elif kind == 6 and random.random() < 0.3:
            del held[place:]
        else:
            what = HOSTILE[int(random.integers(len(HOSTILE)))]
            held[place : place + (len(what) if random.random() < 0.5 else 0)] = what
    return bytes(held)


class Whole:
    """The whole files of each format, written once, and the answer that they give."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[str, str] = {}

    def of(self, name: str) -> tuple[Path, str]:
        place = self._folder / name
        if name not in self._answers:
            place.mkdir()
            SPECIMENS[name].write(place)
            self._answers[name] = _placeless(SPECIMENS[name].read(place), place)
        return place, self._answers[name]


def _placeless(text: str, place: Path) -> str:
    return text.replace(str(place), "HERE")


def judged(name: str, file: str, data: bytes, whole: Whole, work: Path) -> str:
    """How the reading of a specimen ends, of which one file is replaced by `data`."""
    source, right = whole.of(name)
    shutil.copytree(source, work)
    (work / file).write_bytes(data)
    return alone(SPECIMENS[name], work, right)


def alone(specimen: Specimen, work: Path, right: str = "") -> str:
    """How the reading of a directory, which is removed, ends in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _limit()
        os.write(writing, _end(specimen, work, right).encode(errors="replace")[:2000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as answer:
        end = answer.read()
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(work)
    if status:
        code = os.waitstatus_to_exitcode(status)
        return "no end" if code in {-signal.SIGALRM, -signal.SIGXCPU} else f"crash: exit code {code}"
    return end


def _limit() -> None:
    # Of its own time, on a busy machine too; what only waits is ended by the clock.
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(12 * SECONDS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)


def _end(specimen: Specimen, work: Path, right: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _placeless(specimen.read(work), work)
    except CkptProbeError as error:
        return "told" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"exception: {type(error).__name__} {str(error)[:100]} ({Path(last.filename).name}:{last.lineno})"
    if found == right:
        return "the same"
    return "another answer from a file of ours" if specimen.ours else "another"


FINE = {"told", "the same", "another"}


def cases(names: list[str], seed: int, first: int, count: int):
    """Formats in the order of their shares, and a random generator for each case, whichever are left out."""
    order = [name for name in names for _ in range(SPECIMENS[name].share)]
    for number in range(first, first + count):
        yield number, order[number % len(order)], np.random.default_rng([seed, number])


def fuzz(asked: argparse.Namespace) -> Counter:
    """Run the cases and print what is found; ends by format."""
    ends: Counter = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        whole = Whole(Path(folder) / "whole")
        for number, name, random in cases(asked.formats or list(SPECIMENS), asked.seed, asked.first, asked.cases):
            place, _ = whole.of(name)
            files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
            file = files[int(random.integers(len(files)))]
            data = mutated((place / file).read_bytes(), random)
            end = judged(name, file, data, whole, Path(folder) / "work")
            ends[name, end if end in FINE else "finding"] += 1
            if end not in FINE:
                print(f"case {number}: {name}/{file}: {end}", flush=True)
                _keep(asked.keep, f"{name}--{file.replace('/', '__')}--{asked.seed}-{number}.gz", data)
            if time.monotonic() - started > asked.seconds:
                print(f"stopped by --seconds; the next case is {number + 1}")
                break
    return ends


def replay(corpus: Path) -> Counter:
    """Judge every file of the corpus, FORMAT--FILE--ORIGIN.gz."""
    ends: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        whole = Whole(Path(folder) / "whole")
        for kept in sorted(corpus.glob("*--*--*.gz")):
            name, file, _ = kept.name.split("--")
            data = gzip.decompress(kept.read_bytes())
            end = judged(name, file.replace("__", "/"), data, whole, Path(folder) / "work")
            ends[name, end if end in FINE else "finding"] += 1
            if end not in FINE:
                print(f"{kept.name}: {end}")
    return ends


def hostile(memory: int) -> Counter:
    """Judge every kind of hostile file, written for a budget of `memory` bytes; each must be refused."""
    ends: Counter = Counter()
    budget.MEMORY = memory
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work"
            work.mkdir()
            kind.write(work, memory)
            size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            end = alone(Specimen(lambda folder: None, kind.read), work)
            ends["hostile", end if end == "told" else "finding"] += 1
            if end != "told":
                print(f"{name}, {size:,} bytes: {end}", flush=True)
    return ends


def _keep(folder: Path | None, name: str, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data, mtime=0))


def main() -> int:
    """Parse, run, print a table of ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on where one stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--formats", nargs="*", choices=list(SPECIMENS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--hostile", nargs="?", type=int, const=budget.MEMORY, metavar="BYTES")
    asked = parser.parse_args()
    # A collection would copy what all processes share; a process that has started threads cannot be copied at all.
    gc.freeze()
    gc.disable()
    lookover.PROCESSOR_SECONDS = 3
    torch.set_num_threads(1)
    with suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    ends = hostile(asked.hostile) if asked.hostile else replay(asked.replay) if asked.replay else fuzz(asked)
    for name in [*SPECIMENS, "hostile"]:
        told = ", ".join(f"{end} {ends[name, end]}" for end in (*sorted(FINE), "finding") if ends[name, end])
        if told:
            print(f"{name:13} {told}")
    findings = sum(count for (_, end), count in ends.items() if end == "finding")
    print(f"{sum(ends.values())} cases, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
