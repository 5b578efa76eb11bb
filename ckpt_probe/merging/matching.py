"""Check that two checkpoints have the same tensors, so that they can be merged."""

from collections.abc import Mapping

from ckpt_probe.checkpoints import Checkpoint, quantised
from ckpt_probe.checkpoints.tensors import ITEM_BYTES
from ckpt_probe.errors import DataError, listed
from ckpt_probe.wrappers import matching_names

INTEGERS = frozenset({"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Dtypes of integers and booleans, which are copied."""


def check_match(a: Checkpoint, b: Checkpoint, *, converted: bool | None = None) -> dict[str, str]:
    """Match the tensors of two checkpoints by name, without the prefixes that wrappers put before the names of either.

    Args:
        a: First checkpoint, of which every tensor is needed.
        b: Second checkpoint, of which tensors outside its wrapper are left out.
        converted: Whether floating numbers become one dtype, so that theirs may differ; None if they cannot.

    Returns:
        Name in a → name in b. `match_note` describes how they differ.

    Raises:
        DataError: If names are missing or extra in b, or shapes or dtypes differ; all of these are listed.
    """
    names = matching_names(a.names, b.names)
    renamed = any(first != second for first, second in names.items())
    dtypes = {m: (a.dtype(m), b.dtype(n)) for m, n in names.items()}
    differing = {m: pair for m, pair in dtypes.items() if len(set(pair)) > 1}
    kinds = [f"{m} {x} / {y}" for m, (x, y) in differing.items() if not (converted and {x, y} <= set(ITEM_BYTES))]
    hint = " (`dtype=` converts floating numbers)" if converted is False else ""
    faults = {
        f"missing from {b.path.name}": sorted(set(a.names) - set(names)),
        f"extra in {b.path.name}": [] if renamed else sorted(set(b.names) - set(names)),
        "of another shape": [f"{m} {a.shape(m)} / {b.shape(n)}" for m, n in names.items() if a.shape(m) != b.shape(n)],
        f"of another dtype{hint}": kinds,
    }
    listing = [f"{len(faulty)} {fault}: {listed(faulty)}" for fault, faulty in faults.items() if faulty]
    if listing:
        raise DataError(f"{a.path} and {b.path} do not have the same tensors; {'; '.join(listing)}")
    return names


def match_note(a: Checkpoint, b: Checkpoint, names: Mapping[str, str]) -> str | None:
    """Return a sentence about tensors that `check_match` matched by other names or left out; else None."""
    renamed = [(first, second) for first, second in names.items() if first != second]
    if not renamed:
        return None
    first, second = renamed[0]
    outside = sorted(set(b.names) - set(names.values()))
    left_out = f"; {len(outside)} tensors outside it are left out: {listed(outside)}" if outside else ""
    wrapper = f"tensor names differ from those of {a.path.name} by the prefix of a wrapper ({second} for {first})"
    return f"{b.path.name}: {wrapper}{left_out}"


def check_averaged(a: Checkpoint) -> None:
    """Raise DataError if a tensor of a checkpoint is quantised or of a dtype that cannot be averaged."""
    unfit = {
        name: a.dtype(name) for name in a.names if a.dtype(name) not in INTEGERS and a.dtype(name) not in ITEM_BYTES
    }
    unfit |= {name: f"quantised ({how})" for name, how in quantised(a.layout).items() if name not in unfit}
    if unfit:
        name, kind = next(iter(unfit.items()))
        raise DataError(
            f"{a.path}: tensor {name!r} is {kind}, which cannot be averaged ({len(unfit)} such); "
            "convert to float32, float16 or bfloat16 first"
        )
