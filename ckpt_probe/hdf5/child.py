"""The process that opens doubtful HDF5 files for `lookover`: a path a line comes in, an empty line tells it lived."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import h5py

from ckpt_probe.hdf5.files import items, opened_here, require_own

MEMORY = 2 * 2**30
LARGEST_CHUNK = 2**26
"""Bytes of a chunk that are read for the sake of the filters it went through."""


def main() -> None:
    """Look over file after file until there are no more."""
    # Ctrl-C is for the process that asks; it closes our input when it goes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin.buffer:
        _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + int(sys.argv[1]))
        # What is wrong with a file is told where it is opened in earnest.
        with suppress(Exception):
            walk_through(Path(os.fsdecode(bytes.fromhex(line.decode()))))
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def walk_through(path: Path) -> None:
    """Do once what a reader of a file does: its objects, attributes, and the first and last row of each dataset."""
    with opened_here(path) as file:
        require_own(path, file)
        for _, item in items(file):
            for name in item.attrs:
                with suppress(Exception):
                    item.attrs[name]
            if isinstance(item, h5py.Dataset) and item.size:
                with suppress(Exception):
                    _read_ends(item)


def _read_ends(dataset: h5py.Dataset) -> None:
    if not dataset.shape:
        dataset[()]
        return
    bytes_a_row = dataset.nbytes // len(dataset)
    rows = dataset.chunks[0] if dataset.chunks else 1
    if rows * bytes_a_row <= LARGEST_CHUNK:
        _ = dataset[:1], dataset[-1:]


def _limit(name: str, most: int) -> None:
    with suppress(ImportError, AttributeError, ValueError, OSError):
        # Windows has none of these limits, and macOS not all.
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    main()
