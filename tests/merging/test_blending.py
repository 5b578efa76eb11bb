"""Tests of values at the edge of a dtype: rounded once, never infinite, recomputed if an intermediate sum overflows."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_probe.errors import DataError
from ckpt_probe.merging import average, interpolate

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
LOWEST = {"float64": -1074, "float32": -149, "float16": -24, "bfloat16": -133}
"""Exponent of the smallest positive number."""


def files(folder: Path, *tensors: torch.Tensor) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(tensors))]
    for path, tensor in zip(paths, tensors, strict=True):
        save_file({"w": tensor}, path)
    return paths


def nearest(value: float, dtype: str) -> Fraction:
    """Return the number of a dtype nearest to a value, ties to even, by exact arithmetic."""
    exponent = max(math.frexp(value)[1] - BITS[dtype], LOWEST[dtype])
    unit = Fraction(2) ** exponent
    return round(Fraction(value) / unit) * unit


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float64_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    generator = np.random.default_rng(0)
    bits, low = BITS[dtype], 2.0 ** LOWEST[dtype]
    units = generator.integers(2 ** (bits - 1), 2**bits, 400) * 2.0 ** (1 - bits)
    step = 2.0 ** (1 - bits)
    # Midpoints between neighbours, and values above and below them by less than float32 can represent.
    halves = np.concatenate([units + step / 2 * (1 + sign * 2.0**-25) for sign in (-1, 0, 1)])
    small = low * np.concatenate([np.arange(40) + 0.5 + sign * 2.0**-40 for sign in (-1, 0, 1)])
    values = np.concatenate([halves, -halves, small, -small, [0.0, -0.0, low / 4, 1 + 2**-8 + 2**-40]])
    tensor = torch.from_numpy(values)
    a, b = files(tmp_path, tensor, tensor)
    for write in (
        lambda out: average([a, b], out, dtype=dtype),
        lambda out: interpolate(a, b, alpha=0.0, out=out, dtype=dtype),
    ):
        out = tmp_path / "o.safetensors"
        write(out)
        written = load_file(out)["w"]
        out.unlink()
        assert written.dtype == DTYPES[dtype]
        assert [Fraction(x) for x in written.double().tolist()] == [nearest(x, dtype) for x in values.tolist()]
        assert torch.equal(torch.signbit(written), torch.signbit(tensor))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("source", "dtype", "largest", "too_large"),
    [
        ("float64", "float32", 2.0**128 - 2.0**103 - 2.0**75, 2.0**128 - 2.0**103),
        ("float64", "bfloat16", 2.0**128 - 2.0**119 - 2.0**75, 2.0**128 - 2.0**119),
        ("float64", "float16", 65520 - 2.0**-30, 65520.0),
        ("float32", "bfloat16", 2.0**128 - 2.0**119 - 2.0**104, 2.0**128 - 2.0**119),
        ("float32", "float16", 65520 - 2.0**-8, 65520.0),
        ("bfloat16", "float16", 65280.0, 65536.0),
        ("float64", "float32", 0.0, 1e39),
    ],
)
def test_the_largest_representable_number_is_written_and_a_larger_one_is_refused(
    tmp_path: Path, source: str, dtype: str, largest: float, too_large: float, sign: int
) -> None:
    fits = torch.tensor([sign * largest, 1.0], dtype=DTYPES[source])
    a, b = files(tmp_path, fits, fits)
    average([a, b], tmp_path / "o", dtype=dtype)
    assert load_file(tmp_path / "o")["w"].isfinite().all()
    a, b = files(tmp_path, *[torch.tensor([1.0, sign * too_large], dtype=DTYPES[source])] * 2)
    for write in (
        lambda out: average([a, b], out, dtype=dtype),
        lambda out: interpolate(a, b, alpha=0.3, out=out, dtype=dtype),
        lambda out: interpolate(a, b, alpha=1.0, out=out, dtype=dtype),
    ):
        with pytest.raises(DataError, match=rf"tensor 'w' contains numbers over .*, the largest in {dtype}, such as "):
            write(tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_overflow_of_the_sum_alone_is_corrected_and_one_of_the_result_is_refused(tmp_path: Path, dtype: str) -> None:
    largest = torch.tensor([torch.finfo(DTYPES[dtype]).max] * 3, dtype=DTYPES[dtype])
    a, b = files(tmp_path, largest, -largest)
    # The difference of the ends exceeds the range of the dtype; the midpoint does not.
    interpolate(a, b, alpha=0.5, out=tmp_path / "middle")
    assert torch.equal(load_file(tmp_path / "middle")["w"], torch.zeros_like(largest))
    average([a, a, b], tmp_path / "back", weights=[2, -2, -1])
    assert torch.equal(load_file(tmp_path / "back")["w"], largest)
    for weights in ([0.75, -0.75], [2e200, 0]):
        with pytest.raises(DataError, match=rf"tensor 'w' contains numbers over .*, the largest in {dtype}, such as "):
            average([a, b], tmp_path / "no", weights=weights)
    with pytest.raises(DataError, match=rf"the largest in {dtype}, such as -"):
        interpolate(a, b, alpha=1.5, out=tmp_path / "no")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_their_file(tmp_path: Path, dtype: str, value: float) -> None:
    tensor = torch.ones(5, dtype=DTYPES[dtype])
    bad = tensor.clone()
    bad[3] = value
    a, b = files(tmp_path, tensor, bad)
    with pytest.raises(DataError, match=r"1\.safetensors: tensor 'w' contains NaN or infinity"):
        average([a, b], tmp_path / "no")
    with pytest.raises(DataError, match=r"1\.safetensors: tensor 'w' contains NaN or infinity"):
        interpolate(a, b, alpha=1, out=tmp_path / "no")


def test_interpolation_gives_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    a, b = files(tmp_path, torch.tensor([3e38]), torch.tensor([-3e38]))
    interpolate(a, b, alpha=0.5, out=tmp_path / "middle")
    with pytest.raises(DataError):
        average([a, b], tmp_path / "no", weights=[9, 9e99])
    assert len(recwarn) == 0
