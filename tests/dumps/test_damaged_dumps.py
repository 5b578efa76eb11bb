"""Dumps with damaged bytes: they are analyzed, or refused in words; nothing else comes out of ckpt-probe."""

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
from ckpt_probe.extraction import Block, Storage, StoreWriter

CASES, SECONDS = 40, 300

# Each damaged dump in a process of its own: there is damage on which the HDF5 library itself may crash or never end.
# The processes come from a fresh one with one thread, since a copy of one with several may wait for ever.
FLIP = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
import torch
from ckpt_probe.analysis import analyze
from ckpt_probe.errors import CkptProbeError

torch.set_num_threads(1)
path, seed, cases, seconds = Path(sys.argv[1]), *map(int, sys.argv[2:5])
whole, random = path.read_bytes(), np.random.default_rng(seed)
right = list(analyze(path))
ends = []
for _ in range(cases):
    damaged = bytearray(whole)
    damaged[random.integers(len(whole))] ^= 1 << int(random.integers(8))
    path.write_bytes(damaged)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(seconds)
        try:
            end = "the same numbers" if list(analyze(path)) == right else "other numbers"
        except CkptProbeError as error:
            end = "told" if str(error).startswith(str(path)) else f"named no file: {error}"
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
    with StoreWriter(path, None, Storage(store=store), weights, torch.zeros(3).double()) as writer:
        writer.write_split("test", [Block(features, torch.arange(40) % 3, features @ weights.float().T)], rows=40)
    return path


def flipped(path: Path, seed: int, cases: int) -> list[str]:
    words = [sys.executable, "-c", FLIP, str(path), str(seed), str(cases), str(SECONDS)]
    # No time limit of its own: every case has one.
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("store", ["features", "moments"])
def test_a_flipped_bit_never_gives_another_number(tmp_path: Path, store: str) -> None:
    """A bit that changes nothing lies where nothing is: between the parts of a file, or in room for more rows."""
    ends = flipped(write(tmp_path / "a.h5", store), 0, CASES)
    assert set(ends) <= {"the same numbers", "told"}, ends
    assert ends.count("told") >= CASES // 2


@pytest.mark.slow
@pytest.mark.parametrize("store", ["features", "moments"])
def test_a_thousand_flipped_bits(tmp_path: Path, store: str) -> None:
    ends = flipped(write(tmp_path / "a.h5", store), 1, 1000)
    print({end: ends.count(end) for end in set(ends)})
    assert set(ends) <= {"the same numbers", "told"}


def test_what_a_group_lists_but_has_not_is_named(tmp_path: Path) -> None:
    for name, of in (("features", "features"), ("logits", "features"), ("moments", "moments")):
        path = write(tmp_path / f"{name}.h5", of)
        with h5py.File(path, "a") as file:
            file.attrs["format_version"] = 2  # which has no hash of its names
            del file[f"test/{name}"]
            file[f"test/{name}"] = h5py.SoftLink("/nowhere")
        with pytest.raises(DataError, match=rf"{name}\.h5: test/{name}: expected a (dataset|group)"):
            list(analyze(path))


def test_moments_without_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", "moments")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
        del file["test/moments"].attrs["scored"]
    with pytest.raises(DataError, match=r"a\.h5: test: stored moments: scored, right and summed_loss are missing"):
        list(analyze(path))


def test_rows_out_of_reach_are_told_and_a_callers_own_error_is_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kept = {"chunks": (10, 5), "fletcher32": True}
        file.create_dataset("test/features", data=np.random.default_rng(0).normal(size=(40, 5)), **kept)
        file["test/labels"] = np.arange(40) % 3
        [place] = {file["test/features"].id.get_chunk_info(2).byte_offset}
    damaged = bytearray((tmp_path / "a.h5").read_bytes())
    damaged[place] ^= 1
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
