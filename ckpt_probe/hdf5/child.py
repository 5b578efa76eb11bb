"""Open untrusted HDF5 files for `lookover`: read one path per line, answer each with an empty line."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import h5py

from ckpt_probe.hdf5.files import items, opened

MEMORY = 2 * 2**30
LARGEST_TEST = 2**26
"""Largest size in bytes of a chunk that is read to test its filters."""


def main() -> None:
    """Walk through one file after another until the input ends."""
    # Ctrl-C is handled by the parent process, which closes the input when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin.buffer:
        _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + int(sys.argv[1]))
        # The parent process finds and reports the same error when it opens the file.
        with suppress(Exception):
            walk_through(Path(os.fsdecode(bytes.fromhex(line.decode()))))
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def walk_through(path: Path) -> None:
    """Read all objects and attributes of a file, and the first and last row of each dataset."""
    with opened(path, in_child=True) as file:
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
    if rows * bytes_a_row <= LARGEST_TEST:
        _ = dataset[:1], dataset[-1:]


def _limit(name: str, most: int) -> None:
    with suppress(ImportError, AttributeError, ValueError, OSError):
        # Windows has no such limits, and macOS only some of them.
        import resource

        kind = getattr(resource, name)
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    main()
