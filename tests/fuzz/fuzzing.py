"""Fuzz the readers: mutate real files of every format, and read each in a separate process with 1 GiB and 10 s.

    python tests/fuzz/fuzzing.py --cases 10000 --seed 0        prints a table of outcomes; exits with 1 after a finding
    python tests/fuzz/fuzzing.py --replay tests/fuzz/corpus    reads the files that were findings once
    python tests/fuzz/fuzzing.py --hostile                     reads files made to exhaust memory or time

A process may use twice the memory budget of one file, since the libraries that read it need memory too.

The outcomes are "refused" (a CkptProbeError of one line), "the same" (the answer of the undamaged file), "another" (a
different answer, permitted only for formats without checksums), and findings: any other exception, a crash, no end
within the limit, or a different answer from a file of ckpt-probe's own formats.
The option --keep DIRECTORY stores the files of findings.
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
    """Return the data with one to three random changes, as from a bad disk, a broken transfer or an attacker."""
    changed = bytearray(data)
    for _ in range(int(random.choice([1, 1, 1, 2, 3]))):
        size = max(1, len(changed))
        position, length = int(random.integers(size)), int(random.integers(1, 33))
        kind = int(random.integers(8))
        if kind <= 1 and changed:
            changed[position % len(changed)] ^= 1 << int(random.integers(8))
        elif kind == 2:
            changed[position : position + 1] = bytes([int(random.choice([0, 1, 127, 128, 255]))])
        elif kind == 3:
            changed[position : position + length] = random.bytes(length)
        elif kind == 4:
            del changed[position : position + length]
        elif kind == 5:
            source = int(random.integers(size))
            changed[position:position] = changed[source : source + length]
        elif kind == 6 and random.random() < 0.3:
            del changed[position:]
        else:
            pattern = HOSTILE[int(random.integers(len(HOSTILE)))]
            changed[position : position + (len(pattern) if random.random() < 0.5 else 0)] = pattern
    return bytes(changed)


class Originals:
    """Undamaged files of each format, written once, and the answer that reading them gives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[str, str] = {}

    def original(self, name: str) -> tuple[Path, str]:
        directory = self._folder / name
        if name not in self._answers:
            directory.mkdir()
            SPECIMENS[name].write(directory)
            self._answers[name] = _without_directory(SPECIMENS[name].read(directory), directory)
        return directory, self._answers[name]


def _without_directory(text: str, directory: Path) -> str:
    return text.replace(str(directory), "HERE")


def judge(name: str, file: str, data: bytes, originals: Originals, work: Path) -> str:
    """Return the outcome of reading a specimen in which `data` replaces one file."""
    source, right = originals.original(name)
    shutil.copytree(source, work)
    (work / file).write_bytes(data)
    return read_in_process(SPECIMENS[name], work, right)


def read_in_process(specimen: Specimen, work: Path, right: str = "") -> str:
    """Return the outcome of reading a directory in a separate process; the directory is removed afterwards."""
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
    # Processor time, so that a busy machine changes nothing; the alarm ends a process that only waits.
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
            answer = _without_directory(specimen.read(work), work)
    except CkptProbeError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"exception: {type(error).__name__} {str(error)[:100]} ({Path(last.filename).name}:{last.lineno})"
    if answer == right:
        return "the same"
    return "another answer from a file of ours" if specimen.ours else "another"


FINE = {"refused", "the same", "another"}


def cases(names: list[str], seed: int, first: int, count: int):
    """Return numbered cases: formats in proportion to their shares, and a generator that depends on the number only."""
    order = [name for name in names for _ in range(SPECIMENS[name].share)]
    for number in range(first, first + count):
        yield number, order[number % len(order)], np.random.default_rng([seed, number])


def fuzz(arguments: argparse.Namespace) -> Counter:
    """Run the cases, print the findings, and return the number of outcomes by format."""
    ends: Counter = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "originals").mkdir()
        originals = Originals(Path(folder) / "originals")
        for number, name, random in cases(
            arguments.formats or list(SPECIMENS), arguments.seed, arguments.first, arguments.cases
        ):
            directory, _ = originals.original(name)
            files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
            file = files[int(random.integers(len(files)))]
            data = mutated((directory / file).read_bytes(), random)
            end = judge(name, file, data, originals, Path(folder) / "work")
            ends[name, end if end in FINE else "finding"] += 1
            if end not in FINE:
                print(f"case {number}: {name}/{file}: {end}", flush=True)
                _keep(arguments.keep, f"{name}--{file.replace('/', '__')}--{arguments.seed}-{number}.gz", data)
            if time.monotonic() - started > arguments.seconds:
                print(f"stopped by --seconds; the next case is {number + 1}")
                break
    return ends


def replay(corpus: Path) -> Counter:
    """Read every file of the corpus, named FORMAT--FILE--ORIGIN.gz, and return the number of outcomes."""
    ends: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "originals").mkdir()
        originals = Originals(Path(folder) / "originals")
        for specimen in sorted(corpus.glob("*--*--*.gz")):
            name, file, _ = specimen.name.split("--")
            data = gzip.decompress(specimen.read_bytes())
            end = judge(name, file.replace("__", "/"), data, originals, Path(folder) / "work")
            ends[name, end if end in FINE else "finding"] += 1
            if end not in FINE:
                print(f"{specimen.name}: {end}")
    return ends


def hostile(memory: int) -> Counter:
    """Read every kind of hostile file, written for a budget of `memory` bytes; each must be refused with an error."""
    ends: Counter = Counter()
    budget.MEMORY = memory
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "work"
            work.mkdir()
            kind.write(work, memory)
            size = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            end = read_in_process(Specimen(lambda folder: None, kind.read), work)
            ends["hostile", end if end == "refused" else "finding"] += 1
            if end != "refused":
                print(f"{name}, {size:,} bytes: {end}", flush=True)
    return ends


def _keep(folder: Path | None, name: str, data: bytes) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data, mtime=0))


def main() -> int:
    """Parse the arguments, run the cases, and print a table of outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on where one stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--formats", nargs="*", choices=list(SPECIMENS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--hostile", nargs="?", type=int, const=budget.MEMORY, metavar="BYTES")
    arguments = parser.parse_args()
    # Garbage collection would copy the memory that forked processes share, and a process with threads cannot be forked.
    gc.freeze()
    gc.disable()
    lookover.PROCESSOR_SECONDS = 3
    torch.set_num_threads(1)
    with suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    ends = (
        hostile(arguments.hostile)
        if arguments.hostile
        else replay(arguments.replay)
        if arguments.replay
        else fuzz(arguments)
    )
    for name in [*SPECIMENS, "hostile"]:
        counts = ", ".join(f"{end} {ends[name, end]}" for end in (*sorted(FINE), "finding") if ends[name, end])
        if counts:
            print(f"{name:13} {counts}")
    findings = sum(count for (_, end), count in ends.items() if end == "finding")
    print(f"{sum(ends.values())} cases, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
