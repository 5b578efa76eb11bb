"""Interpolate and average checkpoints that have the same tensors; needs neither a model nor torch."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ckpt_probe.checkpoints import Checkpoint, open_checkpoint
from ckpt_probe.checkpoints.tensors import ITEM_BYTES
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_sequence
from ckpt_probe.merging import blending
from ckpt_probe.merging.streaming import InterpolationSummary, Merge
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.wrappers import matching_names

DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}


def interpolate(
    a: Path | str,
    b: Path | str,
    *,
    alpha: float,
    out: Path | str,
    dtype: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    state_key: str | None = None,
    base: Path | str | None = None,
    progress: Progress | None = None,
) -> InterpolationSummary:
    """Write the checkpoint at `alpha` on the line from a to b, block by block; needs neither model nor data.

    Computed in float32 (float64 if the tensor or the result is float64) and rounded once to nearest, ties to even.
    Integer and boolean tensors are copied from a, at `alpha=1` from b. The output has the tensor names of a and its
    metadata except step and metrics, and names both ends.

    Args:
        a: First checkpoint, of any format; if it is sharded safetensors, so is the output.
        b: Second checkpoint. Its tensor names may differ by the prefix of a wrapper, of which `progress` gets a note.
        alpha: Position on the line: 0 is a, 1 is b; any finite number.
        out: File to write, safetensors, or directory if a is sharded.
        dtype: Precision of the output ("float32", "float64", "float16", "bfloat16"), that of a if None. If it is set,
            a and b may differ in theirs.
        threads: Number of threads; at most four if None.
        overwrite: Whether `out` may exist.
        state_key: As in `open_checkpoint`, for both.
        base: As in `open_checkpoint`, for both.
        progress: Where progress and notes go.

    Returns:
        Number of interpolated tensors, and names of those that were copied.

    Raises:
        DataError: If names, shapes or dtypes differ (all are listed), a number is not finite, the result is too large
            for its dtype, or tensors are quantised or of a dtype without sums.
        UsageError: If `alpha` is not finite, or `out` exists and `overwrite` is false, is or contains a or b, or is a
            directory with more than a sharded checkpoint.
    """
    progress = progress or NullProgress()
    if not math.isfinite(alpha):
        raise UsageError(f"alpha must be a finite number, found {alpha}")
    a, b, base = resolve(a), resolve(b), resolve(base)
    origin = {"a": a.name, "b": b.name, "alpha": alpha, "path": "linear"}
    with ExitStack() as stack:
        ends = [stack.enter_context(open_checkpoint(path, state_key=state_key, base=base)) for path in (a, b)]
        ends = _matched(ends, dtype, progress)
        # At either end the checkpoint is copied, bit for bit.
        end = {0.0: ends[:1], 1.0: ends[1:]}.get(alpha)
        work = Merge(ends[0], end or ends, None if end else blending.line(alpha), _dtype(dtype), origin)
        return work.write(Path(out), [a, b], threads, overwrite, progress)


def average(
    checkpoints: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    state_key: str | None = None,
    base: Path | str | None = None,
    progress: Progress | None = None,
) -> InterpolationSummary:
    """Write the weighted average of checkpoints ("model soup", Wortsman et al. 2022).

    Args:
        checkpoints: At least two checkpoints of any format.
        out: File or directory to write, as in `interpolate`.
        weights: One weight per checkpoint, not scaled to sum to 1; equal weights that sum to 1 if None.
        dtype: As in `interpolate`.
        threads: As in `interpolate`.
        overwrite: Whether `out` may exist.
        state_key: As in `open_checkpoint`, for all.
        base: As in `open_checkpoint`, for all.
        progress: Where progress and notes go.

    Returns:
        Number of averaged tensors, and names of those that were copied.

    Raises:
        DataError: As in `interpolate`.
        UsageError: If there are fewer than two checkpoints or the weights do not fit; otherwise as in `interpolate`.
    """
    progress, checkpoints = progress or NullProgress(), as_sequence(checkpoints) or ()
    if len(checkpoints) < 2:
        raise UsageError("an average needs at least two checkpoints")
    chosen = [1 / len(checkpoints)] * len(checkpoints) if weights is None else [float(w) for w in weights]
    if len(chosen) != len(checkpoints) or not all(math.isfinite(weight) for weight in chosen):
        raise UsageError(f"weights: expected {len(checkpoints)} finite numbers, one per checkpoint, found {chosen}")
    paths, base = [resolve(path) for path in checkpoints], resolve(base)
    origin = {"average": [path.name for path in paths], "weights": chosen}
    with ExitStack() as stack:
        sources = [stack.enter_context(open_checkpoint(path, state_key=state_key, base=base)) for path in paths]
        sources = _matched(sources, dtype, progress)
        work = Merge(sources[0], sources, blending.weighted(chosen), _dtype(dtype), origin)
        return work.write(Path(out), paths, threads, overwrite, progress)


def check_match(a: Checkpoint, b: Checkpoint, progress: Progress, *, converted: bool) -> dict[str, str]:
    """Match the tensors of two checkpoints by name, without the prefixes that wrappers put before the names of either.

    Args:
        a: First checkpoint, of which every tensor is needed.
        b: Second checkpoint, of which tensors outside its wrapper are left out.
        progress: Receives a message if names differ, or tensors are left out.
        converted: Whether floating numbers become one dtype, so that theirs may differ.

    Returns:
        Name in a → name in b.

    Raises:
        DataError: If names are missing or extra in b, or shapes or dtypes differ; all of these are listed.
    """
    names = matching_names(a.names, b.names)
    renamed = any(first != second for first, second in names.items())
    dtypes = {m: (a.dtype(m), b.dtype(n)) for m, n in names.items()}
    differing = {m: pair for m, pair in dtypes.items() if len(set(pair)) > 1}
    kinds = [f"{m} {x} / {y}" for m, (x, y) in differing.items() if not (converted and {x, y} <= set(ITEM_BYTES))]
    hint = "" if converted else " (`dtype=` converts floating numbers)"
    faults = {
        f"missing from {b.path.name}": sorted(set(a.names) - set(names)),
        f"extra in {b.path.name}": [] if renamed else sorted(set(b.names) - set(names)),
        "of another shape": [f"{m} {a.shape(m)} / {b.shape(n)}" for m, n in names.items() if a.shape(m) != b.shape(n)],
        f"of another dtype{hint}": kinds,
    }
    listing = [f"{len(faulty)} {fault}: {listed(faulty)}" for fault, faulty in faults.items() if faulty]
    if listing:
        raise DataError(f"{a.path} and {b.path} do not have the same tensors; {'; '.join(listing)}")
    if renamed:
        first, second = next((first, second) for first, second in names.items() if first != second)
        outside = sorted(set(b.names) - set(names.values()))
        left_out = f"; {len(outside)} tensors outside it are left out: {listed(outside)}" if outside else ""
        wrapper = f"tensor names differ from those of {a.path.name} by the prefix of a wrapper ({second} for {first})"
        progress.message(f"{b.path.name}: {wrapper}{left_out}")
    return names


def _matched(sources: Sequence[Checkpoint], dtype: str | None, progress: Progress) -> list[Checkpoint]:
    """Return the sources with the tensor names of the first one; report changed names to `progress`."""
    first, *others = sources
    return [first, *(o.renamed(check_match(first, o, progress, converted=dtype is not None)) for o in others)]


def _dtype(name: str | None) -> str | None:
    if name is not None and name not in DTYPES:
        raise UsageError(f"dtype {name}: expected one of {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]
