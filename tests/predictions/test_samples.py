"""Tests of the pictures of samples: large ones are averaged, small ones keep their size."""

import numpy as np
import pytest

from ckpt_probe.data import ArraySplit
from ckpt_probe.errors import DataError
from ckpt_probe.predictions.samples import SIDE, pictures


def spread(image: np.ndarray) -> np.ndarray:
    """Return the values of an image (C, h, w) from 0 to 255, as (h, w, C)."""
    return np.moveaxis(255 * (image - image.min()) / (image.max() - image.min()), 0, 2)


def test_large_pictures_are_scaled_down() -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 3, 100, 60)).astype(np.float32)
    small = pictures(ArraySplit(inputs, np.arange(3)), [2, 0])
    assert small.shape == (2, SIDE, 19, 3)
    assert (small.min(), small.max(), small.dtype) == (0, 255, np.uint8)
    with pytest.raises(DataError, match="the inputs are no images of 1 or 3 channels"):
        pictures(ArraySplit(inputs[:, 0, 0], np.arange(3)), [0])


def test_pixels_of_large_pictures_are_means_and_small_pictures_are_not_enlarged() -> None:
    inputs = np.random.default_rng(0).normal(size=(2, 3, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    means = inputs.reshape(2, 3, SIDE, 2, SIDE, 2).mean(axis=(3, 5))
    for given, expected in ((inputs, means), (inputs[:, :, :5, :9], inputs[:, :, :5, :9])):
        for shown, image in zip(pictures(ArraySplit(given, np.arange(2)), [0, 1]), expected, strict=True):
            np.testing.assert_allclose(shown, spread(image), atol=0.501)
