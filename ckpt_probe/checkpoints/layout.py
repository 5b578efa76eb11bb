"""Where each tensor of safetensors files lies, read from headers alone: one file, or shards with their index."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.checkpoints.reading import require_readable
from ckpt_probe.checkpoints.writing import BITS
from ckpt_probe.errors import DataError

INDEX_SUFFIX = ".safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes that safetensors itself allows a header."""


@dataclass(frozen=True)
class Place:
    """One tensor: the file it is in, its dtype by safetensors' name, its shape, and its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its tensors in the order of their bytes, and its metadata."""

    file: Path
    tensors: Mapping[str, Place]
    metadata: Mapping[str, str]


class TensorFiles:
    """A checkpoint as files: one, or a sharded directory. Nothing but headers is read; needs no torch."""

    def __init__(self, path: Path, shards: list[Shard], index: Path | None = None) -> None:
        self.path = path
        self.shards = shards
        self.index = index
        self._places: dict[str, Place] = {}
        for shard in shards:
            for name, place in shard.tensors.items():
                if name in self._places:
                    earlier = self._places[name].file.name
                    raise DataError(f"{path}: tensor {name!r} is present twice, in {earlier} and {shard.file.name}")
                self._places[name] = place
        self.names: list[str] = sorted(self._places)

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._places[name].shape

    def dtype(self, name: str) -> str:
        """safetensors' name of one tensor's dtype."""
        return self._places[name].dtype


def locate(path: Path | str) -> TensorFiles:
    """The tensors at `path`: a safetensors file, a directory with an index or a single such file, or an index.

    Raises DataError where a file is missing, is a pickle, is no whole safetensors file, an index names a shard that is
    absent or a tensor that its shard has not, or a tensor is there twice.
    """
    path = Path(path)
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
        files = sorted(path.glob("*.safetensors"))
        if len(indices) == 1:
            return _sharded(path, indices[0])
        if not indices and len(files) == 1:
            return TensorFiles(path, [read_header(files[0])])
        raise DataError(f"{path}: {len(indices)} indices and {len(files)} safetensors files; pass the file to read")
    if path.name.endswith(INDEX_SUFFIX):
        return _sharded(path.parent, path)
    return TensorFiles(path, [read_header(path)])


def read_header(path: Path) -> Shard:
    """Tensors and metadata of one safetensors file; every claim of the header is checked against the file's size."""
    require_readable(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise DataError(f"{path}: not a safetensors file, or a truncated one (its header takes {length} bytes)")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        places = {name: _place(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a safetensors file: its header cannot be read ({error})") from error
    ordered = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 8 + length
    for name, place in ordered.items():
        if place.start != end:
            raise DataError(f"{path}: tensor {name!r} starts at byte {place.start}, expected {end}; file damaged")
        end = place.stop
    if end != size:
        what = "truncated: shorter" if size < end else "longer"
        raise DataError(f"{path}: {what} than its header says ({size:,} bytes instead of {end:,}); copy it again")
    return Shard(path, ordered, metadata)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"tensor {name!r} is present twice")
        found[name] = value
    return found


def _place(path: Path, entry: Mapping[str, Any], data: int) -> Place:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown dtype {dtype}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} or offsets {start}, {stop} are not all non-negative integers")
    if stop - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{stop - start} bytes do not fit {dtype} of shape {shape}")
    return Place(path, dtype, shape, data + start, data + stop)


def _sharded(path: Path, index: Path) -> TensorFiles:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: not an index of shards ({error})") from error
    for file in dict.fromkeys(wanted.values()):
        if Path(file).name != file:
            raise DataError(f"{index}: names the shard {file!r}, which is outside its directory")
        if not (path / file).exists():
            raise DataError(f"{index}: names the shard {file}, which is missing")
    files = TensorFiles(path, [read_header(path / file) for file in dict.fromkeys(wanted.values())], index)
    for name, file in wanted.items():
        if name not in files.names or files[name].file.name != file:
            raise DataError(f"{index}: says that tensor {name!r} is in {file}, but it is not")
    unlisted = [name for name in files.names if name not in wanted]
    if unlisted:
        raise DataError(f"{index}: does not list tensor {unlisted[0]!r} of {files[unlisted[0]].file.name}")
    return files


def companions(path: Path) -> Iterator[Path]:
    """Small files beside the shards that a loader wants too: configuration and tokenizer, no weights, no code."""
    kept = {".json", ".txt", ".model", ".jinja"}
    for file in sorted(path.iterdir()):
        if file.suffix in kept and not file.name.endswith(".index.json") and not file.name.startswith("."):
            yield file
