"""Open untrusted HDF5 files: a child process opens files that could crash the library first, then they are checked."""

from ckpt_probe.hdf5.files import (
    BROKEN,
    CLASS_NAMES,
    SAMPLE_NAMES,
    State,
    bounded_reads,
    groups_with,
    items,
    native,
    opened,
    own_reads,
    read_arrays,
    read_names,
    settled_state,
    state_of,
    structure_hash,
)
