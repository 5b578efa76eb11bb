"""Tests of every shift of images against an independent computation, and of invalid arguments and images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ckpt_probe.data import LabelledData, load_data
from ckpt_probe.errors import DataError, UsageError

CHUNK = 2048
"""Number of images that are shifted at once."""

Load = Callable[..., LabelledData]


@pytest.fixture
def shifted(study: Callable[[str], str]) -> Load:
    """Return a function that loads the shifted images of a source by its name and arguments."""
    return lambda source, shift, **more: load_data(
        study("cma/shifted.py:shifted"), {"source": source, "shift": shift, **more}
    )


@pytest.fixture
def images(tmp_path: Path) -> tuple[str, np.ndarray]:
    """Return an npz of uint8 images (40, 2, 9, 7) for the split train, and the images."""
    x = np.random.default_rng(5).integers(0, 256, (40, 2, 9, 7), dtype=np.uint8)
    np.savez(tmp_path / "bytes.npz", x_train=x, y_train=np.arange(40) % 4)
    return f"npz:{tmp_path / 'bytes.npz'}", x


def rows(data: LabelledData, split: str = "train") -> np.ndarray:
    return data.split(split).batch(slice(None))[0].numpy()


def by_plane(images: np.ndarray, change) -> np.ndarray:
    return np.array([[change(plane) for plane in image] for image in images])


def rotate(plane: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate about the centre by linear interpolation; pixels from outside the image are zero."""
    middle = (np.array(plane.shape) - 1) / 2
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    result = np.zeros_like(plane)
    for i, j in np.ndindex(plane.shape):
        y, x = np.array([[c, s], [-s, c]]) @ (np.array([i, j]) - middle) + middle
        if not (0 <= y <= plane.shape[0] - 1 and 0 <= x <= plane.shape[1] - 1):
            continue
        top, left = int(y), int(x)
        for a, b in np.ndindex(2, 2):
            weight = (1 - abs(y - top - a)) * (1 - abs(x - left - b))
            if weight > 0:
                result[i, j] += weight * plane[min(top + a, plane.shape[0] - 1), min(left + b, plane.shape[1] - 1)]
    return result


def blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Return the Gaussian mean of each pixel's neighbourhood up to four sigma, mirrored at the borders."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    wide = np.pad(plane, reach, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1, 2 * reach + 1))
    return np.einsum("ijkl,k,l->ij", windows, weights, weights)


EXPECTED = {
    "invert": lambda x: 1 - x,
    "rotate:30": lambda x: by_plane(x, lambda plane: rotate(plane, 30)),
    "rotate:-17.5": lambda x: by_plane(x, lambda plane: rotate(plane, -17.5)),
    "blur:1.5": lambda x: by_plane(x, lambda plane: blur(plane, 1.5)),
    "contrast:0.5": lambda x: np.array([image.mean() + 0.5 * (image - image.mean()) for image in x]),
    "contrast:3": lambda x: np.array([np.clip(image.mean() + 3 * (image - image.mean()), 0, 1) for image in x]),
    "contrast:0.5+invert": lambda x: 1 - EXPECTED["contrast:0.5"](x),
    "contrast:3+contrast:0.5": lambda x: EXPECTED["contrast:0.5"](EXPECTED["contrast:3"](x)),
    "blur:0": lambda x: x,
}


@pytest.mark.parametrize("shift", EXPECTED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_shifted_floats_equal_the_independent_computation(shifted: Load, shift: str, split: str) -> None:
    shifted_images = rows(shifted("digits", shift), split)
    assert shifted_images.dtype == np.float32
    np.testing.assert_allclose(
        shifted_images, EXPECTED[shift](rows(load_data("digits"), split).astype(np.float64)), atol=1e-6
    )


@pytest.mark.parametrize("shift", EXPECTED)
def test_shifted_bytes_stay_bytes(shifted: Load, images: tuple[str, np.ndarray], shift: str) -> None:
    name, x = images
    data = shifted(name, shift)
    assert (data.split("train").inputs.dtype, data.arguments) == (torch.uint8, {"source": name, "shift": shift})
    assert data.name.endswith("cma/shifted.py:shifted")
    expected = 255 * EXPECTED[shift](x / 255.0)
    assert np.abs(data.split("train").inputs.numpy() - expected).max() <= 0.5 + 1e-4


def test_noise_is_gaussian_clipped_and_follows_the_seed(shifted: Load, tmp_path: Path) -> None:
    x = np.full((CHUNK + 500, 8, 8), 0.5)
    y = np.arange(len(x)) % 2
    np.savez(tmp_path / "grey.npz", x_train=x, y_train=y, x_test=x[:600], y_test=y[:600])
    name = f"npz:{tmp_path / 'grey.npz'}"
    noise = rows(shifted(name, "noise:0.05")) - 0.5
    assert abs(noise.mean()) < 5 * 0.05 / noise.size**0.5
    assert noise.std() == pytest.approx(0.05, rel=0.01)
    assert abs((np.abs(noise) < 0.05).mean() - 0.6827) < 0.005
    np.testing.assert_array_equal(noise, rows(shifted(name, "noise:0.05")) - 0.5)
    other_draws = [rows(shifted(name, "noise:0.05", subset_seed=1)), rows(shifted(name, "noise:0.05"), "test")]
    assert all((draw[:600] != noise[:600] + 0.5).mean() > 0.99 for draw in other_draws)
    assert (noise[:500] != noise[CHUNK:]).mean() > 0.99
    twice = rows(shifted(name, "noise:0.03+noise:0.04")) - 0.5
    assert twice.std() == pytest.approx(0.05, rel=0.01)
    clipped = rows(shifted(name, "noise:5"))
    assert (clipped.min(), clipped.max()) == (0, 1)
    np.testing.assert_allclose(rows(shifted(name, "noise:0.05+invert")), 0.5 - noise, atol=1e-6)


def test_images_are_shifted_in_several_chunks(shifted: Load, tmp_path: Path) -> None:
    x = np.random.default_rng(1).integers(0, 256, (2 * CHUNK + 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", x_train=x, y_train=np.arange(len(x)) % 2)
    split = shifted(f"npz:{tmp_path / 'many.npz'}", "invert").split("train")
    np.testing.assert_array_equal(split.inputs.numpy(), 255 - x)
    rotated = shifted(f"npz:{tmp_path / 'many.npz'}", "rotate:90").split("train").inputs.numpy()
    np.testing.assert_array_equal(rotated, np.rot90(x, 1, (1, 2)))
    np.testing.assert_array_equal(rotated[-1], ndimage.rotate(x[-1], 90, order=1, reshape=False))


def test_shifts_are_applied_after_the_choice_of_samples(shifted: Load) -> None:
    data = shifted("digits", "invert", per_class=10, validation_per_class=5)
    chosen = load_data("digits", {"per_class": 10, "validation_per_class": 5})
    for name in ("train", "test", "validation"):
        torch.testing.assert_close(data.split(name).inputs, 1 - chosen.split(name).inputs)


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ("sharpen", "shift: 'sharpen': unknown shift; there are: invert, rotate, noise, blur, contrast, joined by +"),
        ("", "shift: '': unknown"),
        ("invert+", "shift: '': unknown"),
        ("invert,noise:0.1", "shift: 'invert,noise:0.1': unknown"),
        ("invert:2", "shift: 'invert:2': invert takes no number"),
        ("rotate", "shift: 'rotate': rotate takes a number from -360 to 360"),
        ("noise:", "shift: 'noise:': noise takes a number from 0 to 10"),
        ("noise:-0.1", "noise takes a number from 0 to 10"),
        ("noise:nan", "noise takes a number from 0 to 10"),
        ("blur:inf", "blur takes a number from 0 to 100"),
        ("blur:1:2", "blur takes a number from 0 to 100"),
        ("contrast:half", "contrast takes a number from 0 to 100"),
        (0.3, "shift: expected a string such as invert"),
    ],
)
def test_unknown_shifts_are_refused(shifted: Load, shift: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"shifted.py:shifted: .*{message}"):
        shifted("digits", shift)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((6, 4)), r"inputs of split train are no images: shape \(6, 4\)"),
        (np.zeros((6, 4, 4), dtype=np.int64), "are torch.int64, expected uint8 or floats"),
        (np.full((6, 4, 4), 255.0), "have values from 255 to 255"),
        (np.full((6, 4, 4), -0.1), "have values from -0.1 to -0.1"),
        (np.full((6, 4, 4), np.nan), "have values from nan to nan"),
    ],
)
def test_other_inputs_are_refused(shifted: Load, tmp_path: Path, x: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "x.npz", x_train=x, y_train=np.arange(6) % 2)
    with pytest.raises(DataError, match=f"shifted.py:shifted: shift: .*{message}"):
        shifted(f"npz:{tmp_path / 'x.npz'}", "invert")
