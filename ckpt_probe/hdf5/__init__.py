"""HDF5 files of anybody: looked over by a process of their own where they could crash the library, opened, checked."""

from ckpt_probe.hdf5.files import (
    BROKEN,
    CLASS_NAMES,
    groups_with,
    items,
    native,
    opened,
    own_reads,
    read_names,
    require_own,
)

__all__ = [
    "BROKEN",
    "CLASS_NAMES",
    "groups_with",
    "items",
    "native",
    "opened",
    "own_reads",
    "read_names",
    "require_own",
]
