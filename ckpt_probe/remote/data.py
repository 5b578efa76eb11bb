"""Names of data whose files are at an address, such as `npz:s3://bucket/digits.npz`."""

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_probe.addresses import is_address
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.remote.paths import resolve

KINDS = frozenset({"idx", "npz", "h5", "text", "imagefolder", "hf-dataset", "csv", "parquet"})
"""Kinds of data that are files."""


@contextmanager
def local_data(name: str) -> Iterator[str]:
    """Download the files of data at an address; yield the name of the data with the path of the local copy.

    Errors within the context state the address instead of that path. Other names are yielded as they are.
    """
    kind, _, address = name.partition(":")
    if kind not in KINDS or not is_address(address):
        yield name
        return
    path = resolve(address)
    copy = path.__fspath__()
    try:
        yield f"{kind}:{copy}"
    except CkptProbeError as error:
        raise type(error)(str(error).replace(copy, str(path))) from error
