"""Verification of files (`inspect --verify`): every byte is read and checked against stored hashes or checksums."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError


def verified(facts: dict[str, Any], state_key: str | None, base: Path | None) -> dict[str, Any]:
    """Read every tensor of the inspected files and check it against its hash or checksum.

    Args:
        facts: Description of a checkpoint, a series or a dump, from `inspect`.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.

    Returns:
        "tensors": number of tensors; "checked": number of those with a hash or checksum; "damaged": error messages.
    """
    from ckpt_probe.cli.console import bars
    from ckpt_probe.remote import resolve

    files = [resolve(part["file"]) for part in facts.get("checkpoints", [facts])]
    read, checked, damaged = 0, 0, []
    with bars() as progress, progress.task("verify", None, "tensors") as bar:
        for file in files:
            results = _dump(file) if facts["kind"].startswith("dump") else _checkpoint(file, state_key, base)
            for under_hash, error in results:
                bar.advance()
                read, checked = read + 1, checked + under_hash
                damaged += [] if error is None else [error]
    return {"tensors": read, "checked": checked, "damaged": damaged}


def verification_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each damaged tensor and a summary."""
    for line in result["damaged"]:
        yield f"damaged: {line}"
    without = result["tensors"] - result["checked"]
    if not result["checked"]:
        yield f"verified: all {result['tensors']:,} tensors were read; there are no hashes to check them against"
    elif without:
        yield f"verified: {result['checked']:,} of {result['tensors']:,} tensors; the other {without:,} carry no hash"
    else:
        intact = result["checked"] - len(result["damaged"])
        yield f"verified: {intact:,} of {result['tensors']:,} tensors are as written"


def require_undamaged(path: Path, result: dict[str, Any]) -> None:
    """Raise DataError if a tensor is damaged."""
    if result["damaged"]:
        count = len(result["damaged"])
        raise DataError(f"{path}: {count} of {result['tensors']} tensors {'is' if count == 1 else 'are'} damaged")


def _checkpoint(file: Path, state_key: str | None, base: Path | None) -> Iterator[tuple[bool, str | None]]:
    from ckpt_probe.checkpoints import open_checkpoint

    with open_checkpoint(file, state_key=state_key, base=base) as checkpoint:
        for name in checkpoint.names:
            yield checkpoint.is_hashed(name), _error_of(checkpoint.read, name)


def _dump(file: Path) -> Iterator[tuple[bool, str | None]]:
    from ckpt_probe.dumps import open_dump

    with open_dump(file) as dump:
        for split in dump.splits:
            yield from dump[split].verify()


def _error_of(read: Callable[[str], Any], name: str) -> str | None:
    try:
        read(name)
    except DataError as error:
        return str(error)
    return None
