"""Memory that a forward pass frees and asks for again: kept by the process, unless its user says otherwise."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import ctypes
import resource

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


KEEP = "from ckpt_probe.extraction.forward import keep_freed_memory; "


def faults(said: str, **environment: str) -> str:
    code = FAULTS.replace("KEEP", said)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own settings")
def test_activations_are_not_mapped_anew_in_every_batch() -> None:
    pages = 10 * 4 * 2**24 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults(f"{KEEP}assert keep_freed_memory()")) < pages / 20 < int(faults("pass"))


@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_what_the_user_sets_stands(setting: dict[str, str]) -> None:
    assert faults(f"{KEEP}print(keep_freed_memory())", **setting).split()[0] == "False"
