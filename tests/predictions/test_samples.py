"""Tests of the pictures of samples: large ones are averaged, small ones keep their size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckpt_probe.data import ArraySplit
from ckpt_probe.dumps import DumpWriter
from ckpt_probe.errors import DataError
from ckpt_probe.predictions import read_predictions
from ckpt_probe.predictions.samples import SIDE, open_samples, pictures

from .conftest import logits_of


def spread(image: np.ndarray) -> np.ndarray:
    """Return the values of an image (C, h, w) from 0 to 255, as (h, w, C)."""
    return np.moveaxis(255 * (image - image.min()) / (image.max() - image.min()), 0, 2)


def test_large_pictures_are_scaled_down() -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 3, 100, 60)).astype(np.float32)
    small = pictures(ArraySplit(inputs, np.arange(3)), [2, 0])
    assert small.shape == (2, SIDE, 19, 3)
    assert (small.min(), small.max(), small.dtype) == (0, 255, np.uint8)
    with pytest.raises(DataError, match=r"^the inputs are no images of 1 or 3 channels, so no picture is shown$"):
        pictures(ArraySplit(inputs[:, 0, 0], np.arange(3)), [0])


def test_pixels_of_large_pictures_are_means_and_small_pictures_are_not_enlarged() -> None:
    inputs = np.random.default_rng(0).normal(size=(2, 3, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    means = inputs.reshape(2, 3, SIDE, 2, SIDE, 2).mean(axis=(3, 5))
    for given, expected in ((inputs, means), (inputs[:, :, :5, :9], inputs[:, :, :5, :9])):
        for shown, image in zip(pictures(ArraySplit(given, np.arange(2)), [0, 1]), expected, strict=True):
            np.testing.assert_allclose(shown, spread(image), atol=0.501)


def test_no_picture_is_an_array_without_rows() -> None:
    shown = pictures(ArraySplit(np.zeros((1, 1, 2, 2)), np.arange(1)), [])
    assert (shown.shape, shown.dtype) == ((0, 1, 1, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda writer: writer.count_not_stored("test", 1200), "1,200 rows are not stored"),
        (lambda writer: writer.leave_out("test", 2), "2 samples could not be read"),
    ],
)
def test_samples_of_rows_that_are_not_all_stored_are_not_opened(
    tmp_path: Path, change: Callable[[DumpWriter], None], reason: str
) -> None:
    file = tmp_path / "step-1.h5"
    with DumpWriter(file, None, classes=3, features=2) as writer:
        writer.start_split("test")
        writer.append("test", np.zeros((4, 2)), np.array([0, 1, 2, 0]), logits_of([0, 1, 2, 0]))
        change(writer)
    [predictions] = read_predictions(file)
    with pytest.raises(DataError) as caught:
        open_samples("digits", None, predictions)
    assert str(caught.value) == f"{file}: test: {reason}, so it is unknown which sample belongs to which row"
