"""`imagefolder:DIR`: splits with a folder of images for each class, in the order of torchvision's ImageFolder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import require_known
from ckpt_probe.data.dataset import DatasetSplit
from ckpt_probe.data.directories import files_below, is_system_name, require_utf8, subfolders
from ckpt_probe.data.hints import ModelHints
from ckpt_probe.data.images.pictures import SUFFIXES, read_picture
from ckpt_probe.data.images.preparation import TRANSFORM, Preparation, image_preparation
from ckpt_probe.data.images.steps import Steps
from ckpt_probe.data.samples import LabelledData, first_samples, sample_shape
from ckpt_probe.errors import DataError, listed

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
"""Names of directories that are taken for splits, whatever is in them."""

ARGUMENTS = frozenset({"allow_empty", TRANSFORM, *Steps.__dataclass_fields__})
TOLERANCE = 0.01
"""The share of images that may be damaged."""


@dataclass(frozen=True)
class Folders:
    """The images of one split: paths below `place`, labels (N,), and the files that are no samples.

    others: files that are no images by their names. system: images that a system or an editor left there.
    """

    place: Path
    files: list[str]
    labels: np.ndarray
    others: list[str]
    system: list[str]


def load(place: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Images of DIR/SPLIT/CLASS/…, or of DIR/CLASS/… as one split named as DIR is; labels count sorted class names.

    Class names are those of all splits together, so that a label means the same in each. arguments: see
    `image_preparation`, and `allow_empty` for class folders without images. Raises DataError where there are no such
    folders, or one has no image.
    """
    require_known("imagefolder", arguments, ARGUMENTS)
    given = dict(arguments)
    allow_empty = bool(given.pop("allow_empty", False))
    preparation = image_preparation(given, hints)
    directories = _splits(Path(place))
    names = sorted({name for directory in directories.values() for name in subfolders(directory)})
    require_utf8(Path(place), names)
    found = {split: _scanned(directory, names) for split, directory in directories.items()}
    for split, folders in found.items():
        _require_images(split, folders, names, allow_empty)
    splits = {split: _split(folders, preparation, workers) for split, folders in found.items()}
    inputs, _ = first_samples(next(iter(splits.values())), 1)
    shape = sample_shape(inputs)
    kept = {**preparation.arguments, **({"allow_empty": True} if allow_empty else {})}
    return LabelledData(
        f"imagefolder:{place}",
        dict(splits),
        len(names),
        shape,
        kept,
        tuple(names),
        _notes(found),
        preparation=preparation.described(shape),
    )


@dataclass(frozen=True)
class ImageFiles:
    """A map-style dataset of image files: `[i]` → (input, label), or Unreadable."""

    place: Path
    files: list[str]
    labels: np.ndarray
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        file = self.files[number]
        picture = read_picture(self.place / file, file, self.preparation.channels)
        return self.preparation.prepare(picture), int(self.labels[number])


def stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """A batch of prepared images. Raises DataError where they differ in size."""
    shapes = list(dict.fromkeys(tuple(image.shape) for image, _ in samples))
    if len(shapes) > 1:
        told = f"images of different sizes in one batch, {shapes[0]} and {shapes[1]}"
        raise DataError(f"{told}: say how to prepare them by --data-argument resize=256 --data-argument crop=224")
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def _split(folders: Folders, preparation: Preparation, workers: int) -> DatasetSplit:
    dataset = ImageFiles(folders.place, folders.files, folders.labels, preparation)
    return DatasetSplit(dataset, labels=folders.labels, collate=stacked, workers=workers, tolerance=TOLERANCE)


def _splits(place: Path) -> dict[str, Path]:
    """Directories of class folders by the names of their splits."""
    if not place.is_dir():
        why = "a file; unpack an archive, and name its directory" if place.exists() else "no such directory"
        raise DataError(f"{place}: {why}")
    inner = [place / name for name in subfolders(place)]
    if not inner:
        raise DataError(f"{place}: no folders in it: expected SPLIT/CLASS/… or CLASS/… with images")
    name = place.resolve().name
    if not any(directory.name.lower() in SPLIT_NAMES for directory in inner) and (
        name.lower() in SPLIT_NAMES or any(map(_has_images, inner)) or not any(map(subfolders, inner))
    ):
        return {name: place}
    flat = [directory.name for directory in inner if not subfolders(directory)]
    if flat:
        raise DataError(f"{place}: {listed(flat)}: no class folders in it, as others here have; expected SPLIT/CLASS/…")
    return {directory.name: directory for directory in inner}


def _has_images(directory: Path) -> bool:
    return any(
        entry.suffix.lower() in SUFFIXES and not is_system_name(entry.name) and entry.is_file()
        for entry in directory.iterdir()
    )


def _scanned(directory: Path, names: list[str]) -> Folders:
    files: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    system: list[str] = []
    folders = [*enumerate(names), *((None, name) for name in subfolders(directory, of_system=True))]
    for label, name in folders:
        for file, of_system in files_below(directory / name):
            path = os.path.relpath(file, directory)
            if Path(file).suffix.lower() not in SUFFIXES:
                others += [] if of_system or label is None else [path]
            elif of_system or label is None:
                system.append(path)
            else:
                files.append(path)
                labels.append(label)
    return Folders(directory, files, np.array(labels, dtype=np.int64), others, system)


def _require_images(split: str, folders: Folders, names: list[str], allow_empty: bool) -> None:
    classes = f"its classes are {listed(names)}"
    if not folders.files:
        raise DataError(f"{folders.place}: split {split} has no image ({', '.join(sorted(SUFFIXES))}); {classes}")
    held = set(folders.labels.tolist())
    empty = [name for label, name in enumerate(names) if label not in held and (folders.place / name).is_dir()]
    if empty and not allow_empty:
        raise DataError(
            f"{folders.place}: no image in {listed(empty)}: put some there, remove the folder, or keep it as a class "
            f"without samples by --data-argument allow_empty=true; {classes}"
        )


def _notes(found: Mapping[str, Folders]) -> tuple[str, ...]:
    notes = []
    for split, folders in found.items():
        for files, why in (
            (folders.others, "files are no images by their names, and left out"),
            (folders.system, "images are hidden, or of a system or an editor by their names, and left out"),
        ):
            notes += [f"split {split}: {len(files)} {why}: {listed(files, 3)}"] if files else []
    return tuple(notes)
