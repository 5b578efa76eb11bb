"""Tests that files which crash the HDF5 library, or never end, are refused in one line: a child process tries first."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import analyze
from ckpt_probe.dumps import DumpWriter, open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import lookover

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


def foreign(path: Path, **options: object) -> Path:
    random = np.random.default_rng(0)
    with h5py.File(path, "w", **options) as file:
        file["test/features"], file["test/labels"] = random.normal(size=(30, 4)), np.arange(30) % 3
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [("crash", r"the HDF5 library crashed on it \(signal 11\)"), ("endless", "came to no end within 1 seconds")],
)
def test_a_crash_and_an_endless_loop_give_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(lookover, "PROCESSOR_SECONDS", 1)
    lookover._end()
    path = tmp_path / f"{name}.h5"
    path.write_bytes(gzip.decompress((CORPUS / f"foreign-dump--a.h5--{name}.gz").read_bytes()))
    with pytest.raises(DataError, match=rf"{name}\.h5: .*{message}.*it is damaged") as error:
        list(analyze(path))
    assert "\n" not in str(error.value)
    [record] = analyze(foreign(tmp_path / "next.h5"))
    assert record["samples"] == 30
    lookover._end()


def test_a_series_starts_one_child_and_files_with_checksums_start_none(tmp_path: Path) -> None:
    lookover._end()
    for number in range(3):
        foreign(tmp_path / f"step-{number}.h5", libver="v110")
    foreign(tmp_path / "step-5.h5", libver="v110", userblock_size=512).rename(tmp_path / "userblock.bin")
    with DumpWriter(tmp_path / "step-7.h5", None, classes=3, features=4) as writer:
        writer.start_split("test", 6, logits=False)
        writer.append("test", np.ones((6, 4), np.float32), np.arange(6) % 3)
    assert len(open_dump_series(tmp_path)) == 4
    assert lookover._child is None
    for number in range(3):
        foreign(tmp_path / f"old-{number}.h5")
    children = set()
    for number in range(3):
        with open_dump(tmp_path / f"old-{number}.h5"):
            assert lookover._child is not None
            children.add(lookover._child[1].pid)
    assert len(children) == 1
    lookover._child[1].kill()
    lookover._child[1].wait()
    with open_dump(foreign(tmp_path / "more.h5")) as dump:
        assert dump["test"].samples == 30


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.h5")
    with open_dump(path):
        pass
    path.write_bytes(gzip.decompress((CORPUS / "foreign-dump--a.h5--crash.gz").read_bytes()))
    with pytest.raises(DataError, match="crashed on it"), open_dump(path):
        pass


def test_the_child_ends_with_its_parent_and_imports_no_torch(tmp_path: Path) -> None:
    program = """
import os, sys
from ckpt_probe.hdf5 import lookover
from ckpt_probe.dumps import open_dump
with open_dump(sys.argv[1]):
    pass
child = lookover._child[1].pid
print(child, "libtorch" in open(f"/proc/{child}/maps").read() if os.path.isdir("/proc/self") else False, flush=True)
os._exit(0)
"""
    words = [sys.executable, "-c", program, str(foreign(tmp_path / "a.h5"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    child, torch = done.stdout.split()
    assert torch == "False"
    for _ in range(200):
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            return
        signal.sigtimedwait([], 0.05)
    pytest.fail("the child is still there")
