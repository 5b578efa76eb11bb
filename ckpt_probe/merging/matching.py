"""Whether two checkpoints have the same tensors, so that a path between them has a meaning."""

from pathlib import Path
from typing import Protocol

from ckpt_probe.checkpoints.numbers import ITEM_BYTES
from ckpt_probe.errors import DataError, listed

WHOLE = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Dtypes of whole numbers, which are copied."""


class Tensors(Protocol):
    """What is known of a checkpoint's tensors before any is read."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        ...

    def dtype(self, name: str) -> str:
        """safetensors' name of one tensor's dtype."""
        ...


def check_match(a: Tensors, b: Tensors) -> None:
    """Raise one DataError that lists what differs: names missing or extra in b, other shapes, other dtypes."""
    both = sorted(set(a.names) & set(b.names))
    faults = {
        f"missing from {b.path.name}": sorted(set(a.names) - set(b.names)),
        f"extra in {b.path.name}": sorted(set(b.names) - set(a.names)),
        "of another shape": [f"{n} {a.shape(n)} / {b.shape(n)}" for n in both if a.shape(n) != b.shape(n)],
        "of another dtype": [f"{n} {a.dtype(n)} / {b.dtype(n)}" for n in both if a.dtype(n) != b.dtype(n)],
    }
    told = [f"{len(names)} {what}: {listed(names)}" for what, names in faults.items() if names]
    if told:
        raise DataError(f"{a.path} and {b.path} do not have the same tensors; {'; '.join(told)}")


def check_averaged(a: Tensors) -> None:
    """Raise DataError where a checkpoint has tensors of a dtype in which no sum can be taken, naming the first."""
    unfit = [name for name in a.names if a.dtype(name) not in WHOLE and a.dtype(name) not in ITEM_BYTES]
    if unfit:
        raise DataError(
            f"{a.path}: tensor {unfit[0]!r} is {a.dtype(unfit[0])}, which cannot be averaged ({len(unfit)} such); "
            "convert to float32, float16 or bfloat16 first"
        )
