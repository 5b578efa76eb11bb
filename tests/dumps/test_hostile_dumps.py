"""Checks that dumps with links outside themselves or with false sizes are refused before a row is read."""

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_probe.analysis import analyze
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import opened


def external_link(file: h5py.File) -> None:
    file["test/features"] = h5py.ExternalLink("other.h5", "/secret")


def linked_group(file: h5py.File) -> None:
    file["train"] = h5py.ExternalLink("other.h5", "/")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("test/features", (4, 2), "f8", external=[("secret.bin", 0, 64)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[...] = h5py.VirtualSource("other.h5", "secret", (4, 2))
    file.create_virtual_dataset("test/features", layout)


def never_written(file: h5py.File) -> None:
    file.create_dataset("test/features", (10**12, 2), "f4", chunks=(1000, 2))


def squeezed(file: h5py.File) -> None:
    # Chunks that were never written take no space in the file.
    file.create_dataset("test/features", (2 * 10**8, 2), "f4", chunks=(10**6, 2), compression="gzip")[:1] = 1.0


def one_chunk(file: h5py.File) -> None:
    shape = (10**8, 2)
    file.create_dataset("test/features", shape, "f4", chunks=shape, compression="gzip")


def deflated(file: h5py.File, shape: tuple[int, int], size: int) -> None:
    features = file.create_dataset("test/features", shape, "f4", chunks=shape, compression="gzip")
    features.id.write_direct_chunk((0, 0), zlib.compress(bytes(size), 1))


def full_chunk(file: h5py.File) -> None:
    deflated(file, (4, 2), 10**6)


def large_chunk(file: h5py.File) -> None:
    # Compressed, it is smaller than a chunk.
    deflated(file, (4, 200_000), 130 * 10**6)


def filtered_again(file: h5py.File) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4, 2))
    properties.set_deflate(9)
    properties.set_deflate(9)
    space, group = h5py.h5s.create_simple((4, 2)), file.create_group("test")
    h5py.h5d.create(group.id, b"features", h5py.h5t.IEEE_F32LE, space, properties)


def scaled(file: h5py.File) -> None:
    file.create_dataset("test/features", data=np.ones((4, 2)), scaleoffset=2)


def many_names(file: h5py.File) -> None:
    file["test/features"] = np.ones((4, 2))
    file.create_dataset("class_names", (10**7,), "S1", chunks=(10**7,), compression="gzip")


def without_columns(file: h5py.File) -> None:
    file["test/features"] = np.ones((4, 0))


def objects(file: h5py.File) -> None:
    file.create_dataset("test/features", data=["x"] * 4, dtype=h5py.string_dtype())


def references(file: h5py.File) -> None:
    file.create_dataset("test/features", (4,), h5py.ref_dtype)


def ragged(file: h5py.File) -> None:
    file.create_dataset("test/features", (4,), h5py.vlen_dtype(np.float32))


def compound(file: h5py.File) -> None:
    file["test/features"] = np.zeros(4, [("x", "f4"), ("y", "f4")])


def nested(file: h5py.File) -> None:
    file.create_group("/".join(["deep"] * 12))
    file["test/features"] = np.zeros((4, 2))


CASES: list[tuple[Callable[[h5py.File], None], str]] = [
    (external_link, r"test/features: a link to another file \('other.h5'\)"),
    (linked_group, r"train: a link to another file"),
    (external_storage, r"test/features: stored in another file"),
    (virtual, r"test/features: a virtual dataset"),
    (never_written, r"test/features: claims 8,000,000,000,000 bytes, but only 0 were ever written"),
    (squeezed, r"test/features: unpacks to 1,600,\d+,\d+ bytes or more"),
    (one_chunk, r"test/features: unpacks to 800,\d+,\d+ bytes or more"),
    (full_chunk, r"test/features: a chunk of 32 bytes unpacks to more; damaged, or made to do this"),
    (large_chunk, r"test/features: a chunk of 3,200,000 bytes unpacks to more"),
    (filtered_again, r"test/features: stored with filters after its compression"),
    (scaled, r"test/features: stored with the unknown filter 6; write it with gzip, lzf or no filter"),
    (many_names, r"class_names: unpacks to 650,\d+,\d+ bytes or more"),
    (without_columns, r"test/features: expected .* of shape \(N, D\), found shape \(4, 0\)"),
    (objects, r"test/features: contains texts, expected numbers"),
    (references, r"test/features: contains object"),
    (ragged, r"test/features: contains object"),
    (compound, r"test/features: contains \["),
    (nested, r"groups nested more than 8 deep"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_a_hostile_dump_is_refused_before_a_row_is_read(
    tmp_path: Path, make: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones((4, 2))
    (tmp_path / "secret.bin").write_bytes(np.ones(8).tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
        file["test/labels"] = np.arange(4) % 2
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"a\.h5: .*{message}"):
            list(analyze(tmp_path / "a.h5"))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["rows"], file["test/labels"] = random.normal(size=(30, 4)), np.arange(30) % 3
        file["test/features"] = h5py.SoftLink("/rows")
        file["test/itself"] = file["test"]
    [record] = analyze(tmp_path / "a.h5")
    assert record["samples"] == 30


def test_a_chunk_larger_than_a_block_of_rows_is_decompressed_once(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(40_000, 16)).astype("f4")
    with h5py.File(tmp_path / "step-1.h5", "w") as file:
        file.create_dataset("test/features", data=features, chunks=features.shape, compression="gzip")
        file["test/labels"] = np.arange(len(features)) % 4
    with opened(tmp_path / "step-1.h5") as file:
        cache = file.id.get_access_plist().get_cache()
        assert cache[2] == features.nbytes
        assert np.array_equal(file["test/features"][100:200], features[100:200])


def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "dump.h5"
    with h5py.File(path, "w") as file:
        file["test/features"], file["test/labels"], file["test/strange"] = np.ones((4, 2)), np.arange(4), np.ones(2)
    path.write_bytes(path.read_bytes().replace(b"strange", b"str\xffnge"))
    with pytest.raises(DataError, match=r"dump\.h5: /test: a member whose name is no text"):
        list(analyze(path))
    with h5py.File(path, "w") as file:
        file["n" * 70_000 + "/features"], file["n" * 70_000 + "/labels"] = np.ones((4, 2)), np.arange(4)
    with pytest.raises(DataError, match=r"dump\.h5: /: a member whose name is no text, or too long"):
        list(analyze(path))
