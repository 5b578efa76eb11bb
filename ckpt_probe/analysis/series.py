"""Dumps → records: one for each checkpoint and split, streamed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ckpt_probe.analysis.records import Record, analyze_blocks, in_order
from ckpt_probe.dumps import Dump, open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.progress import Progress, Silent

BLOCK_BYTES = 16 * 2**20


def analyze_series(
    path: Path | str,
    *,
    splits: Sequence[str] | None = None,
    centred: bool = False,
    progress: Progress | None = None,
) -> Iterator[Record]:
    """Records of every dump at `path`, one file or a directory, in the order of their steps.

    Raises DataError, naming file, split and row, where a dump cannot be read or holds what has no meaning.
    """
    members = open_dump_series(path)
    with (progress or Silent()).task("dumps", len(members), "dumps") as bar:
        for member in members:
            yield from analyze_dump(member.path, splits=splits, centred=centred)
            bar.advance()


def analyze_dump(path: Path | str, *, splits: Sequence[str] | None = None, centred: bool = False) -> list[Record]:
    """Records of one dump, one for each split (or each of `splits`); never more than one block of it is in memory.

    Raises DataError as `analyze_series` does.
    """
    with open_dump(path) as dump:
        return [_record(dump, split, centred) for split in splits or dump.splits]


def _record(dump: Dump, split: str, centred: bool) -> Record:
    view = dump[split]
    rows = max(1, BLOCK_BYTES // (8 * view.dimension))
    try:
        record = analyze_blocks(lambda: view.blocks(rows), dump.weights, dump.bias, centred=centred)
    except DataError as error:
        raise DataError(f"{dump.path}: {split}: {error}") from error
    return in_order({"checkpoint": dump.name, "step": dump.step, "split": split, **record})
