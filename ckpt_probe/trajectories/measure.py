"""Measurements of all tensors over a series: exact in one stream, or from a sketch of each checkpoint; cached."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.budget import require_regular
from ckpt_probe.checkpoints import Member, fingerprint
from ckpt_probe.errors import CkptProbeError
from ckpt_probe.files import code_hash, replacing, stamp_of
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.scheduling import in_turn, results
from ckpt_probe.trajectories.layout import Parameters, WeightOptions
from ckpt_probe.trajectories.motion import gram_from_first
from ckpt_probe.trajectories.stream import SKETCHED, Blocks, Trace, sketch_of, traces
from ckpt_probe.user_cache import cached_file

CACHE = "trajectories"
"""Subdirectory of the user's cache."""
START = 1024
"""Number of entries by which tied tensors are sought."""
CHUNKS = 4
"""Number of tasks of each worker."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """Numbers of every tensor over the T checkpoints of a series.

    Attributes:
        names: Tensors, parameters first, then buffers; of tied ones only the first.
        parameters: Number of those that are parameters.
        tied: Other names of tied tensors, with the name that stands for them.
        arrays: By name, with one row for each tensor: squares, distances, steps, next, signs, broken,
            constant, lowest, digests and entries; see `Route` and `Trace`.
        gram: Gram matrix (T − 1, T − 1) of successive displacements of all parameters.
        exact: Whether distances are exact, or from sketches.
    """

    names: tuple[str, ...]
    parameters: int
    tied: Mapping[str, str]
    arrays: Mapping[str, np.ndarray]
    gram: np.ndarray
    exact: bool


def measure(parameters: Parameters, options: WeightOptions, *, sketch: bool, progress: Progress) -> Measured:
    """Measure all tensors of a series.

    Args:
        parameters: Tensors that are compared.
        options: Options, of which the workers share the tensors, or the checkpoints that are sketched.
        sketch: Whether to sketch each checkpoint; sketches are cached one by one.
        progress: Receives a bar and messages.
    """
    tied = _tied(parameters, options)
    names = tuple(name for name in (*parameters.names, *parameters.buffers) if name not in tied)
    count = sum(name not in tied for name in parameters.names)
    arrays, gram = (_sketched if sketch else _exact)(parameters.members, names, count, options, progress)
    return Measured(names, count, tied, arrays, gram, not sketch)


def cached(
    kind: str, options: WeightOptions, identity: Callable[[], Any], compute: Callable[[], Arrays], progress: Progress
) -> Arrays:
    """Return arrays from the user's cache, or compute them and write them there.

    Args:
        kind: Name of the arrays.
        options: Options, which may leave the cache out.
        identity: Returns everything that the arrays depend on, as values of JSON; the version of the code is added.
        compute: Function that computes the arrays.
        progress: Receives a message if the cache cannot be written.
    """
    if not options.cache:
        return compute()
    key = json.dumps([kind, identity(), code_hash()])
    try:
        file = cached_file(CACHE, f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz")
    except CkptProbeError as error:
        progress.message(f"measurements are not cached: {error}")
        return compute()
    # A damaged archive may raise errors of zipfile and zlib.
    with suppress(Exception):
        require_regular(file)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if str(arrays.pop("key")) == key:
            return arrays
    arrays = compute()
    try:
        with replacing(file, overwrite=True) as temporary, temporary.open("wb") as output:
            np.savez(output, key=np.array(key), **arrays)  # pyright: ignore[reportArgumentType]
    except CkptProbeError as error:
        progress.message(f"the cache could not be written: {error}")
    return arrays


def identity_of(member: Member, options: WeightOptions) -> list[Any]:
    """Return what identifies the content of a checkpoint: the hashes that it states, or its stamp and sampled bytes."""
    with ExitStack() as stack:
        checkpoint = options.open(member, stack)
        stamps = [] if len(checkpoint.stated_hashes) == len(checkpoint.names) else [*map(stamp_of, checkpoint.files)]
        return [fingerprint(checkpoint), stamps, checkpoint.state_key]


def _exact(
    members: Sequence[Member], names: tuple[str, ...], parameters: int, options: WeightOptions, progress: Progress
) -> tuple[Arrays, np.ndarray]:
    workers = options.workers

    def compute() -> Arrays:
        parts = workers.count * CHUNKS if not workers.alone else 1
        chunks = [chunk for part in range(parts) if (chunk := names[part::parts])]
        rows: dict[str, Arrays] = {}
        gram = np.zeros((len(members) - 1, len(members) - 1))
        with progress.task("weights", len(names), "tensors") as bar:
            # This process reads with several threads and reports each tensor; workers use one thread each.
            threads, advance = (None, bar.advance) if workers.alone else (1, None)
            work = partial(_rows_of, members, frozenset(names[:parameters]), options, threads, advance)
            labels = [chunk[0] for chunk in chunks]
            for of_chunk, sums in in_turn(results(work, chunks, names=labels, workers=workers, say=progress.message)):
                rows |= of_chunk
                gram += sums
                bar.advance(0 if workers.alone else len(of_chunk))
        return {**{key: np.stack([rows[name][key] for name in names]) for key in rows[names[0]]}, "gram": gram}

    def identity() -> list[Any]:
        return [names, parameters, options.sample, [identity_of(member, options) for member in members]]

    arrays = cached("exact", options, identity, compute, progress)
    return arrays, arrays.pop("gram")


def _rows_of(
    members: Sequence[Member],
    parameters: frozenset[str],
    options: WeightOptions,
    threads: int | None,
    advance: Callable[[], None] | None,
    names: tuple[str, ...],
) -> tuple[dict[str, Arrays], np.ndarray]:
    """Return the arrays of some tensors, and the sum of the Gram matrices of those that are parameters."""
    rows, gram = {}, np.zeros((len(members) - 1, len(members) - 1))
    for name, trace in traces(members, names, options, threads):
        rows[name] = _row(trace)
        gram += trace["steps"] if name in parameters else 0.0
        if advance is not None:
            advance()
    return rows, gram


def _row(trace: Trace) -> Arrays:
    steps = trace["steps"]
    row = {name: array for name, array in trace.items() if name != "highest"}
    return row | {
        "distances": np.diag(gram_from_first(steps)).copy(),
        "steps": np.diag(steps).copy(),
        "next": np.diagonal(steps, 1).copy(),
        "constant": trace["lowest"] == trace["highest"],
    }


def _sketched(
    members: Sequence[Member], names: tuple[str, ...], parameters: int, options: WeightOptions, progress: Progress
) -> tuple[Arrays, np.ndarray]:
    ordered = []
    with progress.task("sketches", len(members), "checkpoints") as bar:
        labels, work = [member.name for member in members], partial(_sketch, names, options)
        for sketch in in_turn(results(work, members, names=labels, workers=options.workers, say=progress.message)):
            ordered.append(sketch)
            bar.advance()
    rows, gram = [], np.zeros((len(members) - 1, len(members) - 1))
    for row in range(len(names)):
        displacements = np.diff([sketch["sums"][row] for sketch in ordered], axis=0)
        steps = displacements @ displacements.T
        gram += steps if row < parameters else 0.0
        columns = {key: np.stack([sketch[key][row] for sketch in ordered]) for key in SKETCHED}
        rows.append(_row(columns | {"steps": steps, "signs": np.zeros(len(steps), np.int64), "entries": np.array(0)}))
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}, gram


def _sketch(names: tuple[str, ...], options: WeightOptions, member: Member) -> Arrays:
    work = partial(sketch_of, member, names, options)
    return cached("sketch", options, lambda: [names, identity_of(member, options)], work, NullProgress())


def _tied(parameters: Parameters, options: WeightOptions) -> dict[str, str]:
    """Return parameters that share their values with another in the first and the last checkpoint, and its name."""
    of_shape = grouped_by(parameters.names, parameters.shapes.__getitem__).values()
    candidates = [name for names in of_shape if len(names) > 1 for name in names]
    groups: dict[str, str] = dict.fromkeys(candidates, "")
    with ExitStack() as stack:
        for member in {member.path: member for member in (parameters.members[0], parameters.members[-1])}.values():
            checkpoint = options.open(member, stack)
            for name in candidates:
                trace = Blocks([checkpoint], name, START).trace(0)
                # Constant tensors, such as biases of zero, are equal without being tied.
                start = name if trace["lowest"][0] == trace["highest"][0] else trace["digests"][0]
                groups[name] += f" {parameters.shapes[name]} {start}"
    first: dict[str, str] = {}
    return {name: first[group] for name, group in groups.items() if first.setdefault(group, name) != name}
