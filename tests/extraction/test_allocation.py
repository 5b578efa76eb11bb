"""Memory that a forward pass frees and asks for again: kept by the process, unless its user says otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckpt_probe

MODULE = Path(ckpt_probe.__file__).parent / "extraction" / "allocation.py"
FAULTS = """
import ctypes
import resource
import runpy
# By its file: the package would bring torch, and what that frees.
keep_freed_memory = runpy.run_path(MODULE)["keep_freed_memory"]

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
SIZE = 2**24

def passes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [ctypes.c_void_p(library.malloc(SIZE)) for _ in range(4)]
        for block in blocks:
            ctypes.memset(block, 1, SIZE)
        for block in blocks:
            library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# What glibc comes to by itself depends on what has been freed before; here it gives back whatever it can.
library.mallopt(-3, 2**25)
library.mallopt(-1, 2**17)
KEEP
passes()
print(passes())
"""


def faults(said: str, **environment: str) -> str:
    code = FAULTS.replace("KEEP", said).replace("MODULE", repr(str(MODULE)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own settings")
def test_activations_are_not_mapped_anew_in_every_batch() -> None:
    pages = 10 * 4 * 2**24 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults("assert keep_freed_memory()")) < pages / 20 < int(faults("pass"))


def test_what_the_user_sets_stands() -> None:
    assert faults("print(keep_freed_memory())", MALLOC_ARENA_MAX="2").split()[0] == "False"
    assert faults("print(keep_freed_memory())", GLIBC_TUNABLES="glibc.malloc.arena_max=2").split()[0] == "False"
