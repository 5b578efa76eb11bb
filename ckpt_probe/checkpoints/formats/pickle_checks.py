"""Check a file of torch.save before torch reads it: every size that it claims, and every name that its pickles need."""

import io
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints.formats.scanning import Scan, scan
from ckpt_probe.errors import DataError

LOCAL_HEADER = 30
"""Fewest bytes in front of each member of a zip file."""
END_64, LOCATOR, END = 56, 20, 22
"""Bytes of the last records of a zip file; large files and those of torch have the first two."""
ORDERS = (b"little", b"big")
"""Byte orders of numbers, as torch.save states them."""
TORCHSCRIPT = ("constants.pkl", "code/")
NOT_TORCH = "a zip file, but not one written by torch.save"
PREAMBLE = 3
"""Pickles of a stream before the one with the tensors: a magic number, the protocol, and sizes of the machine."""
COUNT = 8
"""Bytes in front of each storage of a stream: its number of entries."""
LONGEST_STREAM = 2**26
"""Most bytes of the pickles in front of the storages of a stream, which do not state their length."""
OTHER_TENSORS = {
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without data, on torch's meta device",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a custom class",
}
"""Functions of torch that are not called → the kind of tensor that a file needs them for."""


def check_file(file: BinaryIO, size: int, path: Path, *, archive: bool = True) -> bool:
    """Check a file of torch.save without running any of it.

    Args:
        file: The open file, at its start.
        size: Its bytes.
        path: Its path, for messages.
        archive: Whether it is a zip archive, else the stream of versions of torch before 1.6.

    Returns:
        Whether its numbers are in the byte order of another machine.

    Raises:
        DataError: If the file claims more bytes than it has, or needs a class or function that is not allowed.
    """
    try:
        budget = Budget(path, size)
        result, swapped = check_archive(file, budget) if archive else (_check_stream(file, size, budget), False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from error
    if result.forbidden:
        raise DataError(f"{path}: {_refusal(path, result)}")
    return swapped


def check_archive(file: BinaryIO, budget: Budget) -> tuple[Scan, bool]:
    """Scan the pickle of an archive and check that every storage is as large as the pickle claims.

    Returns:
        The scan, and whether the numbers are in the byte order of another machine.

    Raises:
        ValueError: If torch.save did not write the archive, if it is TorchScript, or if a member lies outside the
            archive's folder, is compressed, overlaps another or ends beyond the file.
    """
    order = native = sys.byteorder.encode()
    try:
        with zipfile.ZipFile(file) as archive:
            _require_stated_directory(file, archive)
            if any(name.partition("/")[2].startswith(TORCHSCRIPT) for name in archive.namelist()):
                raise ValueError(
                    "a TorchScript archive, which holds code; if you trust it, convert it: "
                    "state = torch.jit.load(PATH).state_dict(); torch.save(state, NEW)"
                )
            budget.spend(entries=len(archive.infolist()))
            members = _members(archive)
            if "data.pkl" not in members:
                raise ValueError(NOT_TORCH)
            result = scan(io.BytesIO(archive.read(members["data.pkl"])), budget)
            if "byteorder" in members:
                order = archive.read(members["byteorder"])
    except zipfile.BadZipFile as error:
        raise ValueError(f"truncated, or no complete zip file ({error})") from error
    except (NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{NOT_TORCH} ({error})") from error
    for key, claimed in result.storages.items():
        member = members.get(f"data/{key}")
        if member is None:
            raise ValueError(f"truncated: its storage data/{key} is missing")
        if member.file_size < claimed:
            raise ValueError(f"claims {claimed:,} bytes for data/{key}, which has {member.file_size:,}")
    if order not in ORDERS:
        raise ValueError(f"its numbers have an unknown byte order, {order[:20]!r}; copy it again")
    return result, order != native


def _require_stated_directory(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raise ValueError if the end of an archive states another position of its directory than zipfile has chosen.

    zipfile reads the directory in front of the end, and torch the one at the stated position.
    """
    start = max(file.seek(0, os.SEEK_END) - END_64 - LOCATOR - END, 0)
    file.seek(start)
    last = file.read()
    end_64, locator, end = last[: -LOCATOR - END], last[-LOCATOR - END : -END], last[-END:]
    stated, valid = int.from_bytes(end[16:20], "little"), end.startswith(b"PK\5\6")
    if locator.startswith(b"PK\6\7"):
        valid &= end_64.startswith(b"PK\6\6") and int.from_bytes(locator[8:16], "little") == start
        stated = int.from_bytes(end_64[48:56], "little")
    if not valid or stated != archive.start_dir:
        raise ValueError("its end is not that of a file of torch.save; copy it again, or load it and save it again")


def _members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the members by their names within the only folder of the archive, each checked."""
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        root, slash, name = member.filename.partition("/")
        # torch takes the name as it is stored: zipfile cuts it at a zero byte, or takes it from an extra field.
        if not slash or member.filename != member.orig_filename:
            raise ValueError(NOT_TORCH)
        if root in ("", "..") or "\\" in member.filename or ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"its member {member.filename!r} points outside the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ValueError(f"its member {member.filename!r} is compressed, which torch.save never does")
        if member.header_offset < end:
            raise ValueError(f"its member {member.filename!r} overlaps another")
        end = member.header_offset + LOCAL_HEADER + member.file_size
        if name in members:
            raise ValueError(f"its member {name!r} is present twice")
        members[name] = member
    if len({member.filename.partition("/")[0] for member in members.values()}) > 1:
        raise ValueError(NOT_TORCH)
    if end > archive.start_dir:
        raise ValueError("its members claim more bytes than the file has")
    return members


def _check_stream(file: BinaryIO, size: int, budget: Budget) -> Scan:
    pickles = io.BytesIO(file.read(LONGEST_STREAM))
    try:
        for _ in range(PREAMBLE):
            scan(pickles, budget)
        result = scan(pickles, budget)
        # Another pickle has the order of the storages, whose bytes follow.
        scan(pickles, budget)
    except ValueError as error:
        raise ValueError(f"truncated, or not written by torch.save ({error})") from error
    claimed, rest = sum(COUNT + number for number in result.storages.values()), size - pickles.tell()
    if claimed > rest:
        raise ValueError(f"truncated: claims {claimed:,} bytes of tensors, but only {rest:,} follow")
    return result


def _refusal(path: Path, result: Scan) -> str:
    first, *others = result.forbidden
    load = f"torch.load({path.name!r}, weights_only=False)"
    if result.whole_module:
        return (
            "a whole pickled module; opening it would run code from the file. If you trust it, convert it: "
            f"model = {load}; torch.save(model.state_dict(), '{path.stem}-weights.pt')"
        )
    if first in OTHER_TENSORS:
        return f"holds {OTHER_TENSORS[first]}; convert them to dense floating point first"
    more = f" and {len(others)} more" if others else ""
    return (
        f"needs {first}{more}, not on the list of harmless classes; it is not opened, because it could run "
        f"code. If you trust it, convert it: saved = {load}; torch.save(saved['…'], '{path.stem}-weights.pt')"
    )
