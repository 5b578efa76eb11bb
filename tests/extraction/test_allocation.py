"""Checks that memory which forward passes free is kept by the process, unless the user changed the allocator."""

import os
import subprocess
import sys

import pytest

from ckpt_probe.extraction.forward import keep_freed_memory

FAULTS = """
import ctypes
import resource

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
SIZE = 2**22

def passes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [ctypes.c_void_p(library.malloc(SIZE)) for _ in range(4)]
        for block in blocks:
            ctypes.memset(block, 1, SIZE)
        for block in blocks:
            library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# The thresholds of glibc depend on earlier frees; these settings make it return as much memory as possible.
library.mallopt(-3, 2**25)
library.mallopt(-1, 2**17)
KEEP
passes()
print(passes())
"""


KEEP = "from ckpt_probe.extraction.forward import keep_freed_memory; "


def faults(statement: str) -> str:
    code = FAULTS.replace("KEEP", statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the settings are those of glibc")
def test_memory_of_activations_is_not_mapped_again_for_every_batch() -> None:
    pages = 10 * 4 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert int(faults(f"{KEEP}assert keep_freed_memory()")) < pages / 20 < int(faults("pass"))


@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_settings_of_the_user_are_not_changed(setting: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    assert keep_freed_memory.__wrapped__() is False  # another test may have changed the setting of this process
