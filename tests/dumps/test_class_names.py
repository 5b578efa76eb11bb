"""Tests of names of classes and samples in dumps, and of announced samples that could not be read."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from ckpt_probe.dumps import DumpWriter, open_dump
from ckpt_probe.errors import DataError


def write(path: Path, names: Sequence[str] | None, *, announced: int = 6, left_out: int = 0) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(6) % 3
    with DumpWriter(path, None, classes=3, features=4) as writer:
        writer.write_classifier(rng.normal(size=(3, 4)))
        if names is not None:
            writer.write_class_names(names)
        writer.start_split("test", announced)
        writer.append("test", rng.normal(size=(6, 4)), labels, rng.normal(size=(6, 3)))
        writer.leave_out("test", left_out)
    return path


@pytest.mark.parametrize("names", [("ant", "bee", "käfer 甲虫"), ("", "[red]x", "a/b:c"), ("only",), None])
def test_names_of_classes_are_read_as_written(names: tuple[str, ...] | None, tmp_path: Path) -> None:
    with open_dump(write(tmp_path / "x.h5", names)) as dump:
        assert dump.class_names == names


def test_announced_rows_that_cannot_be_read_are_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", None, announced=8, left_out=2)
    with open_dump(path) as dump:
        shapes = {name: array.shape for name, array in dump["test"].arrays().items()}
        assert shapes == {"features": (6, 4), "labels": (6,), "logits": (6, 3)}
        assert dump["test"].labels[:].tolist() == [0, 1, 2, 0, 1, 2]
    with h5py.File(path) as file:
        assert file["test/sample"].shape == (6,)
        assert file["test"].attrs["unreadable"] == 2
    with pytest.raises(DataError, match="split test got 6 rows, but 7 were announced"):
        write(tmp_path / "y.h5", None, announced=8, left_out=1)


def test_every_flipped_bit_of_a_name_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", ("ant", "bee", "grasshopper"))
    content = path.read_bytes()
    start = content.index(b"grasshopper")
    for bit in range(8 * len(b"grasshopper")):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError), open_dump(path):
            pass


def test_invalid_names_and_features_of_other_programs_are_refused(tmp_path: Path) -> None:
    of_any_length = np.array(["a", "b"], dtype=object)
    for number, values in enumerate((np.zeros(3), np.array([[b"a"]]), np.array([b"\xff"]), of_any_length)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["test/features"], file["test/labels"] = np.zeros((2, 4)), np.zeros(2, int)
            file["classifier/class_names"] = values
        message = "class_names: contains texts, expected texts of one length" if number == 3 else "class_names"
        with pytest.raises(DataError, match=message), open_dump(tmp_path / f"{number}.h5"):
            pass
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["test/features"], file["test/labels"] = np.array([b"a", b"b"]), np.zeros(2, int)
    with pytest.raises(DataError, match="expected numbers"), open_dump(tmp_path / "text.h5"):
        pass


def test_names_of_samples_are_read_as_written_and_their_number_must_be_that_of_rows(tmp_path: Path) -> None:
    files = ("ant/1.png", "käfer/甲虫.png", "c", "d", "e", "f")
    for path, names in ((tmp_path / "x.h5", files), (tmp_path / "few.h5", files[:4])):
        with DumpWriter(path, None, classes=3, features=4) as writer:
            writer.start_split("test", 6, logits=False)
            writer.append("test", np.zeros((6, 4)), np.arange(6) % 3)
            writer.write_sample_names("test", names)
    with open_dump(tmp_path / "x.h5") as dump:
        assert dump["test"].sample_names() == files
        assert all(problem is None and checked for checked, problem in dump["test"].verify())
        assert "sample_names" in dump["test"].arrays()
    with open_dump(tmp_path / "few.h5") as dump, pytest.raises(DataError, match="4 names for 6 rows"):
        dump["test"].sample_names()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["test/features"], file["test/labels"], file["test/sample_names"] = np.zeros((2, 2)), [0, 1], [1, 2]
    with open_dump(tmp_path / "x.h5") as dump, pytest.raises(DataError, match="expected a list of texts"):
        dump["test"].sample_names()
