"""idx files, the format of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ckpt_probe.data.samples import ArraySplit
from ckpt_probe.errors import DataError

UNSIGNED_BYTE = 0x08
PREFIXES = {"train": "train", "test": "t10k"}


def read_splits(directory: Path) -> dict[str, ArraySplit]:
    """Splits "train" and "test" of a directory with train-images-idx3-ubyte and so on: images (N, 1, H, W) uint8.

    Raises DataError where a file is missing or broken, or images and labels differ in number.
    """
    return {split: _read_split(directory, prefix) for split, prefix in PREFIXES.items()}


def read_array(path: Path, dimensions: int) -> np.ndarray:
    """One idx file of unsigned bytes. Raises DataError where its header and its size do not agree."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]):
                raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions")
            shape = [int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
            size = math.prod(shape)
            _require_plausible(path, size)
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) != size:
        more = "more" if len(content) > size else f"{len(content)}"
        raise DataError(f"{path}: the header promises {size} bytes of data, but the file holds {more}; copy it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _read_split(directory: Path, prefix: str) -> ArraySplit:
    images = read_array(_find(directory, f"{prefix}-images-idx3-ubyte"), 3)
    labels = read_array(_find(directory, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise DataError(f"{directory}: {prefix} has {len(images)} images but {len(labels)} labels")
    return ArraySplit(images[:, None].copy(), labels.astype(np.int64))


def _find(directory: Path, name: str) -> Path:
    for spelled in (name, name.replace("-idx", ".idx")):
        for path in (directory / spelled, directory / f"{spelled}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{directory}: neither {name} nor {name}.gz is there")


def _require_plausible(path: Path, size: int) -> None:
    # gzip shrinks nothing more than about 1,032 times, so a claim beyond that cannot be true.
    most = path.stat().st_size * (1_032 if path.suffix == ".gz" else 1)
    if size > most:
        raise DataError(f"{path}: the header promises {size} bytes of data, more than a file of this size can hold")
