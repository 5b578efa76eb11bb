"""Series: the checkpoints of a run in the order of their training steps, and those with identical weights."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from pathlib import Path

from ckpt_probe.budget import require_regular
from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.checkpoints.folders import checkpoints_in, snapshot_in
from ckpt_probe.checkpoints.formats import open_checkpoint
from ckpt_probe.checkpoints.parts import DISTRIBUTED, INDICES, SUFFIXES, is_further_model, model_name
from ckpt_probe.checkpoints.tensors import BITS
from ckpt_probe.errors import DataError
from ckpt_probe.files import Stamp, stamp_of
from ckpt_probe.series import INITIAL, Member, in_order, named_step

RUN_DIRECTORY = re.compile(
    r"(checkpoint|ckpt|(global_?)?steps?|iter(ation)?s?|epochs?|ep)[-_=. ]?(\d.*|final|last|best)", re.IGNORECASE
)
"""Names of directories with one checkpoint of a run; the last weights of the run may be beside them."""

END_DIRECTORY = re.compile(
    rf"((final|last|latest|best)([-_. ]?(model|checkpoint|ckpt))?)|{INITIAL.pattern}", re.IGNORECASE
)
"""Names of directories that hold a checkpoint of a run if directories of steps are beside them."""

BLOCK = 2**22
"""Number of bytes of two checkpoints that are compared at a time."""
SAMPLED = 16
"""Number of tensors of a checkpoint whose first bytes are compared before all bytes are read."""
FIRST = 256
"""Number of bytes that are read of a sampled tensor."""


def open_series(path: Path, *, state_key: str | None = None, base: Path | None = None) -> list[Member]:
    """List the checkpoints at a path, ordered by step; see `step_of`.

    A checkpoint whose name has no step, such as `last.ckpt`, and whose weights are identical to those of another is
    not listed, but named in `also` of the other. A damaged one beside others is listed with the step in its name; its
    error is raised when it is opened.

    Args:
        path: File, or directory with checkpoints in it, in its directory `checkpoints`, or in each of its directories
            (`checkpoint-500/model.safetensors`, which is named after the directory). Besides directories with such
            names, the files of the directory itself are listed too.
        state_key: As in `open_checkpoint`.
        base: As in `open_checkpoint`.

    Raises:
        DataError: If there is no checkpoint, or none of them can be opened.
        UsageError: As in `open_checkpoint`.
    """
    if path.is_file():
        return [member_of(path, model_name(path), state_key, base)]
    require_regular(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    files = checkpoint_files(snapshot_in(path))
    if not files:
        raise DataError(_nothing(path))
    members, damaged, errors = [], [], []
    for file, name in files:
        try:
            members.append(member_of(file, name, state_key, base))
        except DataError as error:
            errors.append(error)
            damaged.append(Member(_address(file), name, *(named_step(name) or (None, None))))
    if not members:
        raise errors[0]
    return in_order([*_without_twins(in_order(members), state_key, base), *damaged])


def unopened_member(path: Path) -> Member | None:
    """Return the entry of a single file, whose step is found once it is open; None for anything else."""
    return Member(path, model_name(path), None) if path.is_file() else None


def checkpoint_files(path: Path) -> list[tuple[Path, str]]:
    """Return the files by which the checkpoints of a directory are opened, with their names; none is opened."""
    files = [(file, model_name(file) if file.parent == path else path.name) for file in checkpoints_in(path)]
    files += _nested(_run_directories(path, files))
    if not files and (path / "checkpoints").is_dir():
        return checkpoint_files(path / "checkpoints")
    return files or _nested(_directories(path))


def is_run(path: Path) -> bool:
    """Return whether a path is a checkpoint or a directory in which `open_series` finds checkpoints; none is opened.

    A directory of directories with several checkpoints each is not one run, but several.
    """
    if not path.is_dir():
        return path.is_file() and path.name.lower().endswith(SUFFIXES)
    try:
        folder = snapshot_in(path)
        if checkpoints_in(folder) or _run_directories(folder, ()) or (folder / "checkpoints").is_dir():
            return bool(checkpoint_files(folder))
        inside = [len(checkpoints_in(below)) for below in _directories(folder)]
        return bool(inside) and max(inside) == 1
    except (DataError, OSError):
        # Opening it raises this error again, with its reason.
        return True


def is_series(path: Path) -> bool:
    """Return whether `path` is a directory of checkpoints, and not a file or a directory that holds one checkpoint.

    Raises:
        DataError: For parts of a model, as `checkpoints_in`.
    """
    folder = snapshot_in(path)
    files = checkpoints_in(folder) if folder.is_dir() else []
    return folder.is_dir() and (len(files) != 1 or bool(_run_directories(folder, files)))


def has_checkpoints(path: Path) -> bool:
    """Return whether a directory is that of a run with checkpoints; none is opened."""
    try:
        return bool(checkpoint_files(snapshot_in(path)))
    except DataError:
        return False


def step_of(checkpoint: Checkpoint, name: str | None = None) -> tuple[int | None, str | None]:
    """Return the step of a checkpoint and its source, None for each that is unknown.

    The step is taken from the metadata of the checkpoint or its trainer, then from the name, then from the epoch, then
    from a number in the name.

    Args:
        checkpoint: The open checkpoint.
        name: Its name; that of its file or directory if None.
    """
    if checkpoint.metadata.step is not None:
        return checkpoint.metadata.step, checkpoint.step_source
    if name is None:
        stem = model_name(checkpoint.file)
        folder = checkpoint.file.resolve().parent.name
        stem = re.sub(r"_\d+$", "", stem) if is_further_model(checkpoint.file) else stem
        name = folder if named_step(stem) is None and RUN_DIRECTORY.fullmatch(folder) else stem
    named = named_step(name)
    if named is not None and named[1] == "name":
        return named
    if checkpoint.metadata.epoch is not None:
        return int(checkpoint.metadata.epoch), "epoch in the file"
    return (None, None) if named is None else named


def member_of(path: Path, name: str, state_key: str | None, base: Path | None) -> Member:
    """Return a checkpoint as a member of a series; raise DataError if it cannot be opened."""
    with open_checkpoint(path, state_key=state_key, base=base) as checkpoint:
        step, source = step_of(checkpoint, name)
    return Member(_address(path), name, step, source)


class Arrivals:
    """A directory that is searched repeatedly; each checkpoint is returned once.

    A checkpoint is opened if none of its files has changed between two searches, and is complete if it can be opened.
    A checkpoint whose name has no step (`last.ckpt`) is left out, since the run may replace it at any time; the initial
    one is not.

    Args:
        path: Directory of the run.
        state_key: As in `open_checkpoint`.
        base: As in `open_checkpoint`.
    """

    def __init__(self, path: Path, *, state_key: str | None = None, base: Path | None = None) -> None:
        self._path = path
        self._state_key, self._base = state_key, base
        self._returned: set[Path] = set()
        self._seen: dict[Path, Stamp] = {}
        self._refused: dict[Path, Stamp] = {}
        self.left_out: dict[str, str] = {}
        """Name of each checkpoint that was not returned so far → reason."""

    @property
    def settled(self) -> bool:
        """Return whether every checkpoint of the last search was returned or refused."""
        return self._seen.keys() <= self._returned | self._refused.keys()

    def look(self) -> list[Member]:
        """Return the checkpoints that are complete since the last search, ordered by step."""
        try:
            checkpoints = checkpoint_files(self._path) if self._path.is_dir() else []
        except DataError as error:
            # The index of shards is written last.
            self.left_out[self._path.name] = str(error)
            return []
        self.left_out.pop(self._path.name, None)
        before, self._seen = self._seen, {}
        members = []
        for file, name in checkpoints:
            if file in self._returned:
                continue
            if named_step(name) is None and not INITIAL.fullmatch(name):
                self.left_out[name] = "its name has no step; extract it without following when the run is over"
                continue
            stamp = stamp_of(_all_files(file, name))
            self._seen[file] = stamp
            if before.get(file) == stamp and self._refused.get(file) != stamp:
                members += self._opened(file, name, stamp)
        return in_order(members)

    def _opened(self, file: Path, name: str, stamp: Stamp) -> list[Member]:
        try:
            member = member_of(file, name, self._state_key, self._base)
        except DataError as error:
            self._refused[file] = stamp
            self.left_out[name] = str(error)
            return []
        self._returned.add(file)
        self.left_out.pop(name, None)
        return [member]


class RepeatedWeights:
    """Search for members of a series whose weights are those of an earlier member."""

    def __init__(self, state_key: str | None, base: Path | None) -> None:
        self._state_key, self._base = state_key, base
        self._seen: dict[str, list[Member]] = {}

    def warnings(self, member: Member, fingerprint: str) -> Iterator[str]:
        """Yield a warning if a member that was passed before has identical weights.

        Args:
            member: Checkpoint of the series.
            fingerprint: Fingerprint of its weights, as `fingerprint` returns it.
        """
        alike = self._seen.setdefault(fingerprint, [])
        earlier = next((m for m in alike if have_same_weights(m, member, self._state_key, self._base)), None)
        if earlier is None:
            alike.append(member)
            return
        yield f"warning: the weights of {_with_step(member)} are identical to those of {_with_step(earlier)}"


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a hash that is equal for identical weights: of the hashes that the file states, else of sampled bytes.

    It covers names, dtypes and shapes of all tensors, and the first bytes of tensors at even distances, the last among
    them, if the file states no hashes of tensors.
    """
    digest = hashlib.sha256(repr(sorted(checkpoint.layout.items())).encode())
    stated = checkpoint.stated_hashes
    if len(stated) == len(checkpoint.names):
        digest.update(repr(sorted(stated.items())).encode())
        return digest.hexdigest()
    names = [name for name in reversed(checkpoint.names) if checkpoint.dtype(name) in BITS]
    for name in names[:: math.ceil(len(names) / SAMPLED) or 1]:
        digest.update(_bytes(checkpoint, name, 0, min(FIRST, _size(checkpoint, name))))
    return digest.hexdigest()


def have_same_weights(a: Member, b: Member, state_key: str | None, base: Path | None) -> bool:
    """Return whether two checkpoints have identical weights; both are read up to the first difference."""
    if a.path.resolve() == b.path.resolve():
        return True
    with (
        open_checkpoint(a.path, state_key=state_key, base=base) as first,
        open_checkpoint(b.path, state_key=state_key, base=base) as second,
    ):
        same_layout = dict(first.layout) == dict(second.layout)
        return same_layout and all(_same_bytes(first, second, name) for name in first.names)


def _nested(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """Return the checkpoints in each directory, named after it, and also after their files if there are several."""
    files = []
    for folder in folders:
        inside = checkpoints_in(folder)
        files += [(file, folder.name if len(inside) == 1 else f"{folder.name}-{model_name(file)}") for file in inside]
    return files


def _without_twins(members: list[Member], state_key: str | None, base: Path | None) -> list[Member]:
    """Leave out members whose names have no step if another has identical weights, and name them in `also` of it."""
    listed = [member for member in members if named_step(member.name) is not None]
    if not listed:
        return members
    for member in members:
        if named_step(member.name) is not None:
            continue
        # A checkpoint of unknown step can only be an end of the run.
        end = listed[0 if INITIAL.fullmatch(member.name) else -1]
        likely = [end] if member.step is None else [other for other in listed if other.step == member.step]
        twin = next((other for other in likely if have_same_weights(other, member, state_key, base)), None)
        if twin is None:
            listed = in_order([*listed, member])
        else:
            listed[listed.index(twin)] = replace(twin, also=(*twin.also, member.name))
    return listed


def _address(file: Path) -> Path:
    """Return the path by which a checkpoint is opened: a distributed one by its directory."""
    return file.parent if file.name == DISTRIBUTED else file


def _run_directories(path: Path, files: Sized) -> list[Path]:
    """Return the directories of a run's checkpoints; those in a checkpoint's own directory are state of DeepSpeed."""
    if files and RUN_DIRECTORY.fullmatch(path.name):
        return []
    folders = _directories(path)
    of_steps = [folder for folder in folders if RUN_DIRECTORY.fullmatch(folder.name)]
    return of_steps and [folder for folder in folders if folder in of_steps or END_DIRECTORY.fullmatch(folder.name)]


def _directories(path: Path) -> list[Path]:
    return [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".") and entry.is_dir()]


def _nothing(path: Path) -> str:
    if dump := next((file for file in (*path.glob("*.h5"), *path.glob("*/*.h5"))), None):
        return f"{path}: no checkpoint, but dumps such as {dump.name}; analyze them (ckpt-probe analyze)"
    looked = ", ".join(f"*{suffix}" for suffix in (*SUFFIXES, ".index.json"))
    return (
        f"{path}: no checkpoint found (looked for {looked} and .metadata here, in checkpoints/ and in each subfolder)"
    )


def _same_bytes(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    if first.dtype(name) not in BITS:
        return False
    size = _size(first, name)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        if _bytes(first, name, start, count) != _bytes(second, name, start, count):
            return False
    return True


def _bytes(checkpoint: Checkpoint, name: str, start: int, count: int) -> bytearray:
    buffer = bytearray(count)
    checkpoint.fill(name, start, memoryview(buffer))
    return buffer


def _size(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint.shape(name)) * BITS[checkpoint.dtype(name)] // 8


def _with_step(member: Member) -> str:
    return member.name if member.step is None else f"{member.name} (step {member.step:,})"


def _all_files(file: Path, name: str) -> Path:
    """Return the directory of a checkpoint with several files, else its file."""
    several = file.name == DISTRIBUTED or file.name.endswith(INDICES) or file.parent.name == name
    return file.parent if several else file
