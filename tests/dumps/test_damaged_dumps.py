"""Tests of dumps with damaged bytes: the numbers are unchanged or the dump is refused with a message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ckpt_probe.analysis import analyze
from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Block, Storage, store_writer

CASES, SECONDS = 10, 300

# Each damaged dump is read in its own process, as some damage makes the HDF5 library crash or loop.
# The parent is a new process with one thread, as a fork of a process with several threads may deadlock.
FLIP = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import torch
from ckpt_probe.analysis import analyze
from ckpt_probe.errors import CkptProbeError

torch.set_num_threads(1)
path, seed, cases, seconds = Path(sys.argv[1]), *map(int, sys.argv[2:5])
intact, random = path.read_bytes(), np.random.default_rng(seed)
expected = list(analyze(path))
ends = []
for _ in range(cases):
    damaged = bytearray(intact)
    damaged[random.integers(len(intact))] ^= 1 << int(random.integers(8))
    path.write_bytes(damaged)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        try:
            end = "the same numbers" if list(analyze(path)) == expected else "other numbers"
        except CkptProbeError as error:
            end = "refused" if str(error).startswith(str(path)) else f"named no file: {error}"
        except BaseException as error:
            end = repr(error)
        os.write(writing, end.encode()[:500])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        ends.append(answer.read())
    if os.waitpid(child, 0)[1]:
        ends[-1] = "HDF5"
print(json.dumps(ends))
"""


def write(path: Path, store: str) -> Path:
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(40, 5, generator=generator), torch.randn(3, 5, generator=generator).double()
    with store_writer(path, None, Storage(store=store), weights, torch.zeros(3).double()) as writer:
        writer.write_split("test", [Block(features, torch.arange(40) % 3, features @ weights.float().T)], rows=40)
    return path


def outcomes_of_flips(path: Path, seed: int, cases: int) -> list[str]:
    words = [sys.executable, "-c", FLIP, str(path), str(seed), str(cases), str(SECONDS)]
    # Each case has a time limit, so the process needs none.
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("store", ["features", "moments"])
def test_a_flipped_bit_never_gives_another_number(tmp_path: Path, store: str) -> None:
    """Check random flipped bits; those in unused space, between parts or for further rows, change nothing."""
    ends = outcomes_of_flips(write(tmp_path / "a.h5", store), 0, CASES)
    assert set(ends) <= {"the same numbers", "refused"}, ends
    assert ends.count("refused") >= CASES // 2


@pytest.mark.slow
@pytest.mark.parametrize("store", ["features", "moments"])
def test_a_thousand_flipped_bits_never_give_another_number(tmp_path: Path, store: str) -> None:
    ends = outcomes_of_flips(write(tmp_path / "a.h5", store), 1, 1000)
    print({end: ends.count(end) for end in set(ends)})
    assert set(ends) <= {"the same numbers", "refused"}


def test_a_broken_link_in_place_of_a_dataset_is_refused(tmp_path: Path) -> None:
    for name, store in (("features", "features"), ("logits", "features"), ("moments", "moments")):
        path = write(tmp_path / f"{name}.h5", store)
        with h5py.File(path, "a") as file:
            file.attrs["format_version"] = 2  # this version has no hash of names
            del file[f"test/{name}"]
            file[f"test/{name}"] = h5py.SoftLink("/nowhere")
        with pytest.raises(DataError, match=rf"{name}\.h5: test/{name}: expected a (dataset|group)"):
            list(analyze(path))


def test_moments_without_their_attributes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "moments")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
        del file["test/moments"].attrs["scored"]
    with pytest.raises(DataError, match=r"a\.h5: test: stored moments: scored, right and summed_loss are missing"):
        list(analyze(path))


def test_damaged_rows_are_reported_and_errors_of_the_caller_are_not_changed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"chunks": (10, 5), "fletcher32": True}
        file.create_dataset("test/features", data=np.random.default_rng(0).normal(size=(40, 5)), **options)
        file["test/labels"] = np.arange(40) % 3
        [offset] = {file["test/features"].id.get_chunk_info(2).byte_offset}
    damaged = bytearray((tmp_path / "a.h5").read_bytes())
    damaged[offset] ^= 1
    (tmp_path / "a.h5").write_bytes(damaged)
    with (
        pytest.raises(DataError, match=r"a\.h5: test, rows 20 to 29: cannot be read and may be damaged"),
        open_dump(tmp_path / "a.h5") as d,
    ):
        list(d["test"].blocks(10))
    with open_dump(tmp_path / "a.h5") as d:
        features = d["test"].features
        assert (features.shape, features.ndim, len(features)) == ((40, 5), 2, 40)
        assert features[:20].shape == (20, 5)
        for take in (lambda: features[25], lambda: features[:], lambda: np.asarray(features)):
            with pytest.raises(DataError, match=r"a\.h5: test/features: cannot be read, it may be damaged"):
                take()
        with pytest.raises(IndexError):
            features[99]
    with pytest.raises(OSError, match="my own") as error, open_dump(tmp_path / "a.h5"):
        raise OSError("my own")
    assert type(error.value) is OSError
