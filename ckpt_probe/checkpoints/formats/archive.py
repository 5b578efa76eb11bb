"""Whether a zip file is an archive that torch.save wrote: every claim of it against the file, before torch reads it."""

import zipfile
from collections.abc import Mapping
from typing import BinaryIO

from ckpt_probe.checkpoints.formats.scanning import LONGEST, Scan, scan

LOCAL_HEADER = 30
"""Bytes that a zip file has before each member at least."""
TORCHSCRIPT = ("constants.pkl", "code/")
NOT_TORCH = "a zip file, but not one written by torch.save"


def check_archive(file: BinaryIO) -> Scan:
    """What the pickle of an archive asks for, every storage of which is as large as the pickle says.

    Raises ValueError where a member leaves the archive, is compressed, lies over another or beyond the file's end, and
    where the archive is not one of torch.save or is TorchScript.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(name.partition("/")[2].startswith(TORCHSCRIPT) for name in archive.namelist()):
                raise ValueError(
                    "a TorchScript archive, which holds code; if you trust it, convert it: "
                    "state = torch.jit.load(PATH).state_dict(); torch.save(state, NEW)"
                )
            members = _members(archive)
            if "data.pkl" not in members:
                raise ValueError(NOT_TORCH)
            pickle = members["data.pkl"]
            if pickle.file_size > LONGEST:
                raise ValueError(f"its pickle alone has {pickle.file_size:,} bytes, more than any checkpoint's")
            with archive.open(pickle) as opened:
                found = scan(opened, pickle.file_size)  # pyright: ignore[reportArgumentType]
    except zipfile.BadZipFile as error:
        raise ValueError(f"truncated, or no whole zip file ({error})") from error
    except (NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{NOT_TORCH} ({error})") from error
    for key, claimed in found.storages.items():
        member = members.get(f"data/{key}")
        if member is None:
            raise ValueError(f"truncated: its storage data/{key} is missing")
        if member.file_size < claimed:
            raise ValueError(f"claims {claimed:,} bytes for data/{key}, which has {member.file_size:,}")
    return found


def _members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Members by their name within the one folder that all are in."""
    found: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        root, _, name = member.filename.partition("/")
        if root in ("", "..") or "\\" in member.filename or ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"its member {member.filename!r} points outside the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ValueError(f"its member {member.filename!r} is compressed, which torch.save never does")
        if member.header_offset < end:
            raise ValueError(f"its member {member.filename!r} overlaps another")
        end = member.header_offset + LOCAL_HEADER + member.file_size
        if name in found:
            raise ValueError(f"its member {name!r} is present twice")
        found[name] = member
    roots = {member.filename.partition("/")[0] for member in found.values()}
    if len(roots) > 1:
        raise ValueError(NOT_TORCH)
    if end > archive.start_dir:
        raise ValueError("its members claim more bytes than the file has")
    return found
