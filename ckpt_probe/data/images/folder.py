"""`imagefolder:DIR`: splits with a folder of images for each class, in the order of ImageFolder, or that of timm."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.arguments import ModelHints, suggestion
from ckpt_probe.data.dataset import DatasetSplit
from ckpt_probe.data.directories import files_below, is_system_name, require_utf8, subfolders
from ckpt_probe.data.images.pictures import SUFFIXES, Steps, read_picture
from ckpt_probe.data.images.preparation import TRANSFORM, Preparation, image_preparation
from ckpt_probe.data.samples import LabelledData, of_splits
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import require_known
from ckpt_probe.series import natural

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
"""Names of directories that are always treated as splits."""

ORDER, NATURAL = "order", "natural"
"""The data argument for the order of classes, and its value for numbers in names by their size, in either case."""
ARGUMENTS = frozenset({"allow_empty", ORDER, TRANSFORM, *Steps.__dataclass_fields__})
TOLERANCE = 0.01
"""Fraction of images that may be damaged."""


def load(path: str, arguments: Mapping[str, Any], hints: ModelHints, workers: int) -> LabelledData:
    """Load images of DIR/SPLIT/CLASS/…, or of DIR/CLASS/… as one split with the name of DIR.

    Labels number the sorted class names of all splits, so that a label means the same class in each. Checkpoints of
    timm's `train.py` have its order of names unless `order` is another.

    Args:
        path: The directory.
        arguments: Those of `image_preparation`, `allow_empty` to accept class folders without images, and `order`.
        hints: The model that will receive the data.
        workers: Number of reading processes.

    Raises:
        DataError: If there are no such folders, or one contains no image.
        UsageError: For invalid arguments.
    """
    require_known("imagefolder", arguments, ARGUMENTS)
    settings = dict(arguments)
    allow_empty = bool(settings.pop("allow_empty", False))
    # timm reads data whose name has a prefix, such as torch/folder, by another library.
    by_timm = hints.source == "timm" and hints.script and "/" not in str(hints.script.get("dataset"))
    order = settings.pop(ORDER, NATURAL if by_timm else "name")
    if order not in ("name", NATURAL):
        raise UsageError(f"imagefolder: {ORDER}={order!r}: expected name or {NATURAL}")
    preparation = image_preparation(settings, hints)
    directories = _splits(Path(path))
    names = sorted({name for directory in directories.values() for name in subfolders(directory)})
    require_utf8(Path(path), names)
    # As timm does, without regard to case.
    by_name, by_number = names, sorted(names, key=lambda name: natural(name.lower()))
    names = by_number if order == NATURAL else by_name
    folders_of = {split: _scanned(directory, names, preparation) for split, directory in directories.items()}
    for split, folders in folders_of.items():
        _require_images(split, folders, names, allow_empty)
    options: dict[str, Any] = {"collate": stacked, "workers": workers, "tolerance": TOLERANCE}
    splits = {split: DatasetSplit(files, labels=files.labels, **options) for split, files in folders_of.items()}
    recorded = {**preparation.arguments, **({"allow_empty": True} if allow_empty else {})}
    notes = _notes(folders_of)
    if by_number != by_name:
        recorded[ORDER] = order
    if names != by_name:
        notes += (f"classes are numbered in natural order, as timm's train.py does: {listed(names, 12)}",)
    data = of_splits(f"imagefolder:{path}", splits, recorded, tuple(names))
    return replace(data, notes=notes, preparation=preparation.described(data.input_shape))


@dataclass(frozen=True)
class ImageFiles:
    """A map-style dataset of the image files of a split; `[i]` returns (input, label) or raises `Unreadable`.

    Args:
        directory: Directory of the split.
        files: Paths of the images relative to `directory`.
        labels: Label of each image, shape (N,).
        preparation: Preparation of the images.
        others: Files without an image suffix, which are left out.
        system: Images that an operating system or an editor created, by their names, which are left out.
    """

    directory: Path
    files: list[str]
    labels: np.ndarray
    preparation: Preparation
    others: list[str]
    system: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        file = self.files[number]
        picture = read_picture(self.directory / file, file, self.preparation.channels)
        return self.preparation.prepare(picture), int(self.labels[number])


def stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Join prepared images into a batch.

    Args:
        samples: Pairs of image, shape (C, H, W), and label.

    Returns:
        Images, shape (n, C, H, W), and labels, shape (n,).

    Raises:
        DataError: If the images differ in size.
    """
    shapes = list(dict.fromkeys(tuple(image.shape) for image, _ in samples))
    if len(shapes) > 1:
        message = f"images of different sizes in one batch, {shapes[0]} and {shapes[1]}"
        raise DataError(f"{message}: choose a preparation, such as {suggestion(resize=256, crop=224)}")
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def _splits(path: Path) -> dict[str, Path]:
    """Return the directory of class folders of each split, by the name of the split."""
    if not path.is_dir():
        reason = "a file; unpack an archive, and name its directory" if path.exists() else "no such directory"
        raise DataError(f"{path}: {reason}")
    inner = [path / name for name in subfolders(path)]
    if not inner:
        raise DataError(f"{path}: no folders in it: expected SPLIT/CLASS/… or CLASS/… with images")
    name = path.resolve().name
    if not any(directory.name.lower() in SPLIT_NAMES for directory in inner) and (
        name.lower() in SPLIT_NAMES or any(map(_has_images, inner)) or not any(map(subfolders, inner))
    ):
        return {name: path}
    flat = [directory.name for directory in inner if not subfolders(directory)]
    if flat:
        raise DataError(f"{path}: {listed(flat)}: no class folders in it, as others here have; expected SPLIT/CLASS/…")
    return {directory.name: directory for directory in inner}


def _has_images(directory: Path) -> bool:
    return any(
        entry.suffix.lower() in SUFFIXES and not is_system_name(entry.name) and entry.is_file()
        for entry in directory.iterdir()
    )


def _scanned(directory: Path, names: list[str], preparation: Preparation) -> ImageFiles:
    folders = [*enumerate(names), *((None, name) for name in subfolders(directory, of_system=True))]
    entries = [
        (label, os.path.relpath(file, directory), of_system or label is None, Path(file).suffix.lower() in SUFFIXES)
        for label, name in folders
        for file, of_system in files_below(directory / name)
    ]
    images = [(label, path) for label, path, of_system, is_image in entries if is_image and not of_system]
    others = [path for _, path, of_system, is_image in entries if not is_image and not of_system]
    system = [path for _, path, of_system, is_image in entries if is_image and of_system]
    labels = np.array([label for label, _ in images], dtype=np.int64)
    return ImageFiles(directory, [path for _, path in images], labels, preparation, others, system)


def _require_images(split: str, folders: ImageFiles, names: list[str], allow_empty: bool) -> None:
    classes = f"its classes are {listed(names)}"
    if not folders.files:
        raise DataError(f"{folders.directory}: split {split} has no image ({', '.join(sorted(SUFFIXES))}); {classes}")
    present = set(folders.labels.tolist())
    empty = [name for label, name in enumerate(names) if label not in present and (folders.directory / name).is_dir()]
    if empty and not allow_empty:
        raise DataError(
            f"{folders.directory}: no image in {listed(empty)}: add images, remove the folder, or keep it as a class "
            f"without samples by {suggestion(allow_empty=True)}; {classes}"
        )


def _notes(folders_of: Mapping[str, ImageFiles]) -> tuple[str, ...]:
    notes = []
    for split, folders in folders_of.items():
        for files, reason in (
            (folders.others, "files are no images by their names, and left out"),
            (folders.system, "images are hidden, or of a system or an editor by their names, and left out"),
        ):
            notes += [f"split {split}: {len(files)} {reason}: {listed(files, 3)}"] if files else []
    return tuple(notes)
