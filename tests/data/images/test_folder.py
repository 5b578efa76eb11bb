"""Tests of folders of images: order, splits, preparation, workers, damaged files, and invalid folders."""

import os
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ckpt_probe.data import LabelledData, ModelHints, Split, first_samples, load_data, notes_of, ready_batches
from ckpt_probe.errors import DataError, UsageError

MakeFolder = Callable[..., Path]
PLAIN = {"resize": 24, "crop": 20}


def everything(split: Split, size: int = 4, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    with ready_batches(split, size, limit) as batches:
        parts = list(batches)
    inputs = [part for part, _ in parts if isinstance(part, torch.Tensor)]
    assert all(0 < len(part) <= size for part in inputs)
    return torch.cat(inputs), torch.cat([labels for _, labels in parts])


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory, make_folder: MakeFolder) -> Path:
    """Write three classes in train and test, one of them with a nested folder, and return the directory."""
    directory = tmp_path_factory.mktemp("pets")
    make_folder(directory / "train", {"dog": 4, "Cat": 3, "ant": 5})
    make_folder(directory / "train" / "dog", {"puppies": 2})
    make_folder(directory / "test", {"dog": 3, "Cat": 2, "ant": 2})
    return directory


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_labels_and_names_equal_those_of_torchvision(pets: Path, workers: int) -> None:
    chain = transforms.Compose([transforms.Resize(24), transforms.CenterCrop(20), transforms.ToTensor()])
    data = load_data(f"imagefolder:{pets}", {**PLAIN, "workers": workers})
    assert (list(data.splits), data.classes, data.input_shape) == (["test", "train"], 3, (3, 20, 20))
    for name, split in data.splits.items():
        reference = ImageFolder(str(pets / name), chain)
        inputs, labels = everything(split)
        torch.testing.assert_close(inputs, torch.stack([image for image, _ in reference]), rtol=1e-6, atol=1e-6)
        assert labels.tolist() == split.labels.tolist() == reference.targets
        assert data.class_names == tuple(reference.classes) == ("Cat", "ant", "dog")
        assert torch.equal(split.batch(torch.tensor([2, 0]))[0], inputs[[2, 0]])
    limited = everything(data.split("train"), limit=5)
    assert torch.equal(limited[0], everything(data.split("train"))[0][:5])


def test_a_single_split_has_the_name_of_its_directory(pets: Path, tmp_path: Path, make_folder: MakeFolder) -> None:
    assert list(load_data(f"imagefolder:{pets / 'test'}", PLAIN).splits) == ["test"]
    make_folder(tmp_path / "flowers", {"rose": 2, "lily": 1})
    data = load_data(f"imagefolder:{tmp_path / 'flowers'}", PLAIN)
    assert (list(data.splits), data.class_names) == (["flowers"], ("lily", "rose"))
    # In a directory with the name of a split the images of a class may be one level deeper.
    make_folder(tmp_path / "val" / "rose", {"images": 2})
    assert list(load_data(f"imagefolder:{tmp_path / 'val'}", PLAIN).splits) == ["val"]


def test_a_label_is_the_same_class_in_every_split(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    make_folder(tmp_path / "test", {"b": 1, "c": 2})
    data = load_data(f"imagefolder:{tmp_path}", PLAIN)
    assert data.split("test").labels.tolist() == [1, 2, 2]


def test_preparation_by_the_model_is_recorded_in_the_arguments(pets: Path) -> None:
    data = load_data(f"imagefolder:{pets}", hints=ModelHints("timm:resnet18", {"img_size": 64}), workers=1)
    assert data.input_shape == (3, 64, 64)
    assert "workers" not in data.arguments
    reloaded = load_data(f"imagefolder:{pets}", data.arguments)
    assert reloaded.arguments == data.arguments
    assert torch.equal(everything(reloaded.split("test"))[0], everything(data.split("test"))[0])


def test_images_of_one_size_need_no_preparation(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 3, "b": 2}, varied=False)
    data = load_data(f"imagefolder:{tmp_path}")
    assert everything(next(iter(data.splits.values())))[0].shape == (5, 3, 30, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_different_sizes_need_a_size(pets: Path, workers: int) -> None:
    data = load_data(f"imagefolder:{pets}", {"workers": workers})
    with pytest.raises(DataError, match=r"images of different sizes .*`data_arguments=.'resize': 256, 'crop': 224"):
        everything(data.split("train"))


@pytest.fixture
def many(tmp_path: Path, make_folder: MakeFolder) -> Path:
    return make_folder(tmp_path / "many", {"a": 120, "b": 80}, varied=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_left_out_counted_and_named(many: Path, workers: int) -> None:
    (many / "a" / "000.png").write_bytes(b"")
    (many / "b" / "007.png").write_bytes((many / "b" / "007.png").read_bytes()[:60])
    data = load_data(f"imagefolder:{many}", {"workers": workers})
    split = data.split("many")
    assert notes_of(split) == notes_of(split)
    for _ in range(2):
        inputs, labels = everything(split, 16)
        assert torch.bincount(labels).tolist() == [119, 79]
        assert len(inputs) == 198
        (note,) = notes_of(split)
        assert note.startswith(
            "2 of 200 samples cannot be read, and are left out: a/000.png (an empty file), b/007.png ("
        )
    assert data.input_shape == (3, 30, 40)
    assert len(first_samples(split, 1)[1]) >= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_more_than_1_percent_damaged_images_are_an_error_that_names_them(many: Path, workers: int) -> None:
    for number in range(20, 23):
        (many / "a" / f"{number:03}.png").write_bytes(b"no image")
    split = load_data(f"imagefolder:{many}", {"workers": workers}).split("many")
    with pytest.raises(DataError, match=r"3 of 200 samples cannot be read, more than 1%: a/020\.png \(no image"):
        everything(split, 64)


def test_a_folder_of_damaged_images_only_is_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 3}, varied=False)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the first 3 samples can be read: a/000\.png \(an empty file\)"):
        load_data(f"imagefolder:{tmp_path}")


def test_other_files_are_ignored_and_counted(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "train" / "a" / "labels.txt").write_text("")
    (tmp_path / "train" / "b" / ".DS_Store").write_text("")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "README").write_text("")
    data = load_data(f"imagefolder:{tmp_path}", PLAIN)
    assert data.class_names == ("a", "b")
    assert data.notes == ("split train: 1 files are no images by their names, and left out: a/labels.txt",)


SYSTEM = (
    "a/._0.png",
    "a/.x/0.png",
    "a/deep/.ipynb_checkpoints/0.png",
    "b/@eaDir/0.png/thumb.jpg",
    "__MACOSX/a/._0.png",
)
"""Images that are not samples, although ImageFolder lists them."""

NO_IMAGES = ("a/desktop.ini", "b/Thumbs.db", "b/.DS_Store", "Thumbs.db", "a/lost+found/log")


@pytest.mark.parametrize("split", [True, False])
def test_files_of_operating_systems_and_editors_are_not_samples(
    split: bool, tmp_path: Path, make_folder: MakeFolder
) -> None:
    folder = tmp_path / "train" if split else tmp_path
    make_folder(folder, {"a": 2, "b": 1}, varied=False)
    expected = everything(load_data(f"imagefolder:{tmp_path}").split(folder.name))
    for name in (*SYSTEM, *NO_IMAGES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((folder / "a/000.png").read_bytes())
    (tmp_path / "._train.png").write_bytes(b"")
    (tmp_path / "__MACOSX" / "train").mkdir(parents=True, exist_ok=True)
    data = load_data(f"imagefolder:{tmp_path}")
    assert (list(data.splits), data.class_names) == ([folder.name], ("a", "b"))
    for actual, reference in zip(everything(data.split(folder.name)), expected, strict=True):
        assert torch.equal(actual, reference)
    assert len(ImageFolder(str(folder))) == 3 + len(SYSTEM)
    reason = "images are hidden, or of a system or an editor by their names, and left out"
    names = ", ".join(SYSTEM[number] for number in (0, 1, 2))
    assert data.notes == (f"split {folder.name}: 5 {reason}: {names} and 2 more",)


def test_a_name_of_a_class_that_is_not_utf8_is_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {os.fsdecode(b"\xe9t\xe9"): 1})
    with pytest.raises(DataError, match=r"the name b'\\xe9t\\xe9' of a class folder is not UTF-8; rename it"):
        load_data(f"imagefolder:{tmp_path}")


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path / "real", {"a": 2})
    make_folder(tmp_path / "data", {"b": 1})
    (tmp_path / "data" / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "real" / "a" / "self").symlink_to(tmp_path / "real" / "a")
    data = load_data(f"imagefolder:{tmp_path / 'data'}", PLAIN)
    assert data.split("data").labels.tolist() == [0, 0, 1]


def test_an_empty_class_folder_is_refused_unless_allowed(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 2, "b": 0, "c": 1})
    with pytest.raises(
        DataError,
        match=r"no image in b: add images, remove the folder, or .*'allow_empty': True.*; its classes are a, b, c",
    ):
        load_data(f"imagefolder:{tmp_path}", PLAIN)
    data = load_data(f"imagefolder:{tmp_path}", {**PLAIN, "allow_empty": True})
    assert (data.classes, next(iter(data.splits.values())).labels.tolist()) == (3, [0, 0, 2])
    assert data.arguments["allow_empty"] is True


def test_invalid_directories_are_refused(tmp_path: Path, make_folder: MakeFolder) -> None:
    for name, message in (
        ("missing", "missing: no such directory"),
        ("empty", r"empty: no folders in it: expected SPLIT/CLASS/"),
        ("flat", r"flat: test: no class folders in it, as others here have"),
        ("bare", r"split train has no image .*; its classes are a, b"),
        ("file.zip", r"file\.zip: a file; unpack an archive"),
    ):
        if name.endswith(".zip"):
            (tmp_path / name).write_bytes(b"")
        elif name != "missing":
            (tmp_path / name).mkdir()
        if name == "flat":
            make_folder(tmp_path / name / "train", {"a": 1})
            make_folder(tmp_path / name, {"test": 1})
        if name == "bare":
            make_folder(tmp_path / name / "train", {"a": 0, "b": 0})
        with pytest.raises(DataError, match=message):
            load_data(f"imagefolder:{tmp_path / name}", PLAIN)


def test_invalid_arguments_are_refused(pets: Path) -> None:
    for arguments, message in (
        ({"size": 3}, "unknown argument size; imagefolder takes allow_empty, channels, crop"),
        ({"workers": -1}, "workers: expected a whole number of at least 0"),
        ({"workers": "many"}, "workers: expected a whole number"),
        ({"match": "never"}, "match: expected name or order"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(f"imagefolder:{pets}", arguments)


def test_workers_end_if_the_iteration_stops_early(pets: Path) -> None:
    split = load_data(f"imagefolder:{pets}", {**PLAIN, "workers": 2}).split("train")
    before = set(active_children())
    with ready_batches(split, 1) as batches:
        next(batches)
        assert len(set(active_children()) - before) == 2
    assert not set(active_children()) - before


def test_an_unknown_split_is_refused_with_the_existing_ones(pets: Path) -> None:
    data: LabelledData = load_data(f"imagefolder:{pets}", PLAIN)
    with pytest.raises(DataError, match="no split 'val'; there are: test, train"):
        data.split("val")
