"""What `inspect --verify` does: every byte read, and checked against the hashes or checksums that stand in the file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError


def verified(facts: dict[str, Any], state_key: str | None, base: Path | None) -> dict[str, Any]:
    """Read all of what was inspected: how many tensors, how many of them under a hash or checksum, what is damaged."""
    from ckpt_probe.cli.console import bars

    files = [Path(found["file"]) for found in facts.get("checkpoints", [facts])]
    read, checked, damaged = 0, 0, []
    with bars() as progress, progress.task("verify", None, "tensors") as bar:
        for file in files:
            of_a_file = _dump(file) if facts["kind"].startswith("dump") else _checkpoint(file, state_key, base)
            for under_hash, error in of_a_file:
                bar.advance()
                read, checked = read + 1, checked + under_hash
                damaged += [] if error is None else [error]
    return {"tensors": read, "checked": checked, "damaged": damaged}


def told(found: dict[str, Any]) -> Iterator[str]:
    """A line for each damaged tensor, and one for what was checked."""
    for line in found["damaged"]:
        yield f"damaged: {line}"
    without = found["tensors"] - found["checked"]
    if not found["checked"]:
        yield f"verified: all {found['tensors']:,} tensors were read; there are no hashes to check them against"
    elif without:
        yield f"verified: {found['checked']:,} of {found['tensors']:,} tensors; the other {without:,} carry no hash"
    else:
        yield f"verified: {found['checked'] - len(found['damaged']):,} of {found['tensors']:,} tensors are as written"


def require_undamaged(path: Path, found: dict[str, Any]) -> None:
    """Raise DataError where something was damaged."""
    if found["damaged"]:
        count = len(found["damaged"])
        raise DataError(f"{path}: {count} of {found['tensors']} tensors {'is' if count == 1 else 'are'} damaged")


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
    from ckpt_probe.remote import told_by_address

    try:
        with told_by_address():
            read(name)
    except DataError as error:
        return str(error)
    return None
