"""Where each tensor of a safetensors file lies, read from its header alone; needs neither torch nor safetensors."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.checkpoints.integrity import HASHES, stated_hashes
from ckpt_probe.checkpoints.writing import BITS
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

LONGEST_HEADER = 100_000_000
"""Bytes that safetensors itself allows a header."""


@dataclass(frozen=True)
class Place:
    """One tensor: its dtype by safetensors' name, its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """One safetensors file: its tensors in the order of their bytes, their hashes where stated, its other metadata."""

    file: Path
    tensors: Mapping[str, Place]
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Tensors and metadata of one safetensors file; every claim of the header is checked against the file's size."""
    require_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise DataError(f"{path}: not a safetensors file, or a truncated one (a header of {length} bytes)")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        places = {name: _place(entry, 8 + length) for name, entry in header.items()}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata must be strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    hashes = stated_hashes(path, metadata, ordered)
    return Header(path, ordered, {name: text for name, text in metadata.items() if name != HASHES}, hashes)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"tensor {name!r} is present twice")
        found[name] = value
    return found


def _place(entry: Mapping[str, Any], data: int) -> Place:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown dtype {dtype}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} or offsets {start}, {stop} are not all non-negative integers")
    if stop - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{stop - start} bytes do not fit {dtype} of shape {shape}")
    return Place(dtype, shape, data + start, data + stop)
