"""Tests of reading a picture: pixels equal those of torchvision's loader, damaged and unsupported files are refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from ckpt_probe.data import Unreadable
from ckpt_probe.data.images.pictures import read_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def image_of_mode(mode: str) -> Image.Image:
    image = Image.fromarray(RGB)
    return image.quantize(16) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("L", "png"), ("1", "png")]
)
def test_pixels_equal_those_of_torchvisions_loader(mode: str, suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"x.{suffix}", image_of_mode(mode))
    assert Image.open(path).mode == mode
    expected = np.asarray(default_loader(str(path)))
    picture = read_picture(path, "x")
    assert (picture.mode, np.asarray(picture).shape) == ("RGB", (6, 9, 3))
    np.testing.assert_array_equal(picture, expected)
    np.testing.assert_array_equal(read_picture(path.read_bytes(), "x"), expected)


def test_transparent_palettes_webp_and_grey_images_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", image_of_mode("P"), transparency=b"\x80" * 16)
    with pytest.warns(UserWarning, match="Transparency"):
        expected = default_loader(str(path))
    np.testing.assert_array_equal(read_picture(path, "x"), expected)
    path = save(tmp_path / "x.webp", image_of_mode("RGB"))
    np.testing.assert_array_equal(read_picture(path, "x"), default_loader(str(path)))
    assert np.asarray(read_picture(path, "x", channels=1)).shape == (6, 9)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_pictures_of_16_bits_are_reduced_to_their_high_byte(suffix: str, tmp_path: Path) -> None:
    wide = np.array([[0, 255, 256, 1000], [30000, 40000, 65279, 65535]], dtype=np.uint16)
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(wide))
    pixels = np.asarray(read_picture(path, "x"))
    np.testing.assert_array_equal(pixels, np.repeat((wide // 256)[..., None], 3, axis=2))
    # With Pillow alone all values from 255 on are white.
    assert np.asarray(default_loader(str(path))).max(axis=2).tolist()[1] == [255] * 4


def test_the_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue", "green")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"x.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(read_picture(path, "x"))[0, 0].tolist() == [255, 0, 0]


def test_the_orientation_in_exif_is_not_applied_as_in_torchvisions_loader(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.png", image_of_mode("RGB"), exif=exif)
    assert read_picture(path, "x").size == (9, 6)
    np.testing.assert_array_equal(read_picture(path, "x"), default_loader(str(path)))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header claims this size but which contains no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^x\.png \(an empty file\)$"),
        (b"not an image", "no image, or a damaged one"),
        (encoded(image_of_mode("RGB"), "PNG")[:100], r"x\.png \("),
        (encoded(Image.fromarray(RGB).resize((300, 300)), "JPEG")[:2000], "image file is truncated"),
        (bomb(30_000, 30_000), "a decompression bomb: .* exceeds limit"),
        (bomb(60, 60), r"x\.png \("),
        (encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "32-bit pixels, whose range is not known"),
        (encoded(Image.fromarray(np.ones((3, 3), np.int32)), "TIFF"), "32-bit pixels, whose range is not known"),
        (encoded(image_of_mode("RGB"), "EPS"), "no image, or a damaged one"),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "bomb", "no pixels", "float", "int32", "postscript"],
)
def test_unreadable_images_are_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(Unreadable, match=message) as caught:
            read_picture(source, "x.png")
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(Unreadable, match=r"a/b\.png \(.*No such file"):
        read_picture(Path("nowhere.png"), "a/b.png")
