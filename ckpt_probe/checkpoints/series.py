"""A series: the checkpoints of a run, in the order of their training steps."""

import re
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from pathlib import Path

from ckpt_probe.addresses import as_path
from ckpt_probe.checkpoints.folders import DISTRIBUTED, SUFFIXES, checkpoints_in, snapshot_in
from ckpt_probe.checkpoints.parts import shard_name
from ckpt_probe.checkpoints.reading import Checkpoint, open_checkpoint
from ckpt_probe.checkpoints.repeats import have_same_weights
from ckpt_probe.errors import DataError
from ckpt_probe.series import Member, in_order, named_step

OF_A_RUN = re.compile(
    r"(checkpoint|ckpt|(global_?)?steps?|iter(ation)?s?|epochs?|ep)[-_=. ]?(\d.*|final|last|best)", re.IGNORECASE
)
"""Directories that are a run's checkpoints, beside which the run's own last weights may lie."""


def open_series(path: Path | str, *, state_key: str | None = None, base: Path | str | None = None) -> list[Member]:
    """The checkpoints at `path`, ordered by step, each found where `step_of` looks.

    `path` is a file, or a directory: with checkpoints in it, in its folder `checkpoints`, or in each of its folders
    (`checkpoint-500/model.safetensors`, named after the folder). Beside folders that are called so, the directory's own
    weights count too. One whose name has no step, such as `last.ckpt`, and whose weights are those of another is told
    by that one as `also`. state_key, base: as `open_checkpoint`. Raises DataError where there is none, and as that.
    """
    return _series(as_path(path), state_key, base)


def places_in(path: Path) -> list[tuple[Path, str]]:
    """The files by which the checkpoints of a directory are opened, and what each is called; none is opened."""
    found = [(file, _stem(file) if file.parent == path else path.name) for file in checkpoints_in(path)]
    found += _nested(_runs(path, found))
    if not found and (path / "checkpoints").is_dir():
        return places_in(path / "checkpoints")
    return found or _nested(_folders(path))


def is_series(path: Path | str) -> bool:
    """Return whether `path` is a directory of checkpoints, and not a file or a directory that holds one checkpoint.

    Raises:
        DataError: For parts of a model, as `checkpoints_in`.
    """
    folder = snapshot_in(as_path(path))
    files = checkpoints_in(folder) if folder.is_dir() else []
    return folder.is_dir() and (len(files) != 1 or bool(_runs(folder, files)))


def step_of(checkpoint: Checkpoint, name: str | None = None) -> tuple[int | None, str | None]:
    """The step of a checkpoint called `name`, by its file's and its directory's where None, and where it is said.

    Looked for in its metadata or its trainer's, then in the name; the epoch is a fallback, and so is a bare number.
    """
    if name is None:
        stem = _stem(checkpoint.file)
        folder = checkpoint.file.resolve().parent.name
        name = folder if named_step(stem) is None and OF_A_RUN.fullmatch(folder) else stem
    if checkpoint.metadata.step is not None:
        return checkpoint.metadata.step, checkpoint.step_source
    named = named_step(name)
    if named is not None and named[1] == "name":
        return named
    if checkpoint.metadata.epoch is not None:
        return int(checkpoint.metadata.epoch), "epoch in the file"
    return (None, None) if named is None else named


def member_of(path: Path, name: str, state_key: str | None, base: Path | str | None) -> Member:
    """A checkpoint by its file, as a member of a series. Raises DataError where it cannot be opened."""
    with open_checkpoint(path, state_key=state_key, base=base) as checkpoint:
        step, source = step_of(checkpoint, name)
    return Member(path.parent if path.name == DISTRIBUTED else path, name, step, source)


def _series(path: Path, state_key: str | None, base: Path | str | None) -> list[Member]:
    if path.is_file():
        return [member_of(path, _stem(path), state_key, base)]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    found = places_in(snapshot_in(path))
    if not found:
        raise DataError(_nothing(path))
    members = in_order(member_of(file, name, state_key, base) for file, name in found)
    return _without_twins(members, state_key, base)


def _nested(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """Checkpoints in each folder, named after it, and after their files too where there are several."""
    found = []
    for folder in folders:
        inside = checkpoints_in(folder)
        found += [(file, folder.name if len(inside) == 1 else f"{folder.name}-{_stem(file)}") for file in inside]
    return found


def _without_twins(members: list[Member], state_key: str | None, base: Path | str | None) -> list[Member]:
    """Each weights once: a member whose name has no step is told by the one of the same weights."""
    kept = [member for member in members if named_step(member.name) is not None]
    if not kept:
        return members
    for member in members:
        if named_step(member.name) is not None:
            continue
        # Where its step is not known, it can only be the end of the run.
        likely = [k for k in kept if k.step == member.step] if member.step is not None else [kept[-1]]
        twin = next((k for k in likely if have_same_weights(k, member, state_key, base)), None)
        if twin is None:
            kept = in_order([*kept, member])
        else:
            kept[kept.index(twin)] = replace(twin, also=(*twin.also, member.name))
    return kept


def _stem(file: Path) -> str:
    if file.name == DISTRIBUTED:
        return file.parent.name
    if file.name.endswith(".index.json"):
        return file.name.partition(".")[0]
    if shard := shard_name(file.name):
        return shard[1]
    suffix = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(suffix)), None)
    return file.stem if suffix is None else file.name.removesuffix(suffix)


def _runs(path: Path, files: Sized) -> list[Path]:
    """Return the folders of a run's checkpoints; in a checkpoint's own, DeepSpeed resumes from global_step500."""
    if files and OF_A_RUN.fullmatch(path.name):
        return []
    return [folder for folder in _folders(path) if OF_A_RUN.fullmatch(folder.name)]


def _folders(path: Path) -> list[Path]:
    return [place for place in _visible(path) if place.is_dir()]


def _visible(place: Path) -> Iterator[Path]:
    return (entry for entry in sorted(place.iterdir()) if not entry.name.startswith("."))


def _nothing(path: Path) -> str:
    looked = ", ".join(f"*{suffix}" for suffix in (*SUFFIXES, ".index.json"))
    return (
        f"{path}: no checkpoint found (looked for {looked} and .metadata here, in checkpoints/ and in each subfolder)"
    )
