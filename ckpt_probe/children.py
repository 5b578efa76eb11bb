"""Child processes that do not import modules from the working directory.

Python puts that directory first on `sys.path` of `python -m` and `python -c`, and so of every process that
multiprocessing spawns: a file `h5py.py` beside downloaded data would run there.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "PYTHONSAFEPATH"


def start_module(module: str, *words: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a module of this package as a process, with pipes to its standard input and output.

    Args:
        module: Name of the module, which runs as `python -P -m`.
        *words: Arguments of its command line.
        variables: Environment variables in addition to those of this process.
    """
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *words],
        env={**os.environ, "PYTHONPATH": path, VARIABLE: "1", **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


@contextmanager
def safe_path() -> Iterator[None]:
    """Keep the working directory off `sys.path` of processes that are started within the context."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
