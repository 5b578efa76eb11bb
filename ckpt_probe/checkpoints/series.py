"""A series: the checkpoints of a run, in the order of their training steps."""

from collections.abc import Iterable
from pathlib import Path

from ckpt_probe.checkpoints.reading import PICKLED, open_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.series import Member, in_order, step_from_name

RESUME_STATE = "state.safetensors"
"""The training stage's own file in a run's directory, which is no checkpoint."""


def open_series(path: Path | str) -> list[Member]:
    """The checkpoints at `path`, ordered by step: the metadata's where there is one, else the number in the name.

    `path` is one file, or a directory with *.safetensors files in it, in its folder `checkpoints`, or one in each of
    its folders (`checkpoint-500/model.safetensors`, named after the folder). Raises DataError where there is none.
    """
    path = Path(path)
    if path.is_file():
        return [_member(path, path.stem)]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or directory")
    for place in (path, path / "checkpoints"):
        found = _checkpoints_in(place)
        if found:
            return in_order(_member(file, file.stem) for file in found)
    nested = [(file, folder.name) for folder in _folders(path) for file in _checkpoints_in(folder)]
    folders = [name for _, name in nested]
    if nested:
        return in_order(
            _member(file, name if folders.count(name) == 1 else f"{name}-{file.stem}") for file, name in nested
        )
    raise DataError(_nothing(path))


def _member(path: Path, name: str) -> Member:
    with open_checkpoint(path) as checkpoint:
        step = checkpoint.metadata.step
    return Member(path, name, step if step is not None else step_from_name(name))


def _checkpoints_in(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return [p for p in _visible(place) if p.suffix == ".safetensors" and p.name != RESUME_STATE and p.is_file()]


def _folders(path: Path) -> list[Path]:
    return [place for place in _visible(path) if place.is_dir()]


def _visible(place: Path) -> Iterable[Path]:
    return (entry for entry in sorted(place.iterdir()) if not entry.name.startswith("."))


def _nothing(path: Path) -> str:
    looked = "looked for *.safetensors here, in checkpoints/ and in each subfolder"
    pickled = sum(1 for file in path.glob("**/*") if file.suffix in PICKLED)
    if pickled:
        looked += f"; {pickled} pickled files (.pt, .bin, .ckpt …) are not opened: convert them to safetensors"
    return f"{path}: no checkpoint found ({looked})"
