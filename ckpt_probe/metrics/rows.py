"""Rows of vectors: arrays of users as tensors, lengths, unit rows, products, spectra, and which numbers are rounding.

A number that is not larger than the rounding of its inputs counts as zero.
"""

import math
import warnings
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError

Array = np.ndarray | Tensor
AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)

NUMBERS = "biufc"
"""Kinds of numpy dtypes that are numbers: boolean, signed, unsigned, floating, complex."""

SHORT, LONG = 1e-140, 1e140
"""Between these lengths the squares of a row's entries neither underflow nor overflow."""

EPSILON = torch.finfo(torch.float64).eps
"""Relative precision ε of float64. A computed number counts as zero up to n · ε · m.

That bounds the error of a mean of n numbers of magnitude m in any order of summation (Higham 2002, section 4.2), and of
an eigenvalue of an n × n matrix whose largest is m. Lengths have the root mean square of theirs as magnitude.
"""


def as_tensor(values: Any, name: str = "the array") -> Tensor:
    """Convert real numbers to a tensor on their device, which shares their memory if torch can.

    Args:
        values: A tensor, or anything that numpy converts to an array; also read-only arrays, and arrays with negative
            strides or another byte order.
        name: Name of the values in messages.

    Raises:
        DataError: If the values are complex, sparse, masked, without data, or no numbers.
    """
    tensor = values if isinstance(values, Tensor) else _from_numpy(_array(values, name), name)
    if tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{name}: expected real numbers, found {kind}; pass their real parts or absolute values")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        kinds = {"a tensor without data, on torch's meta device": tensor.is_meta, "a nested tensor": tensor.is_nested}
        kind = next((kind for kind, applies in kinds.items() if applies), "a sparse tensor")
        raise DataError(f"{name}: expected the numbers of a dense tensor, found {kind}")
    if tensor.is_quantized:
        return tensor.dequantize()
    # Some types have hardly any function in torch; others hold their values exactly.
    if tensor.is_floating_point() and tensor.itemsize == 1:
        return tensor.to(torch.float32)
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        numbers = tensor.to(torch.int64)
        return numbers if tensor.dtype != torch.uint64 or not bool((numbers < 0).any()) else tensor.to(torch.float64)
    return tensor


def as_labels(values: Any, name: str = "labels") -> Tensor:
    """Return class numbers as a tensor of integers.

    Args:
        values: Class numbers of any shape, array or tensor; floating-point numbers are accepted if they are whole.
        name: Name of the values in messages.

    Raises:
        DataError: If they are texts, or numbers that are not whole, such as the targets of a regression.
    """
    if not isinstance(values, Tensor):
        values = _array(values, name)
        if values.dtype.kind in "USOT" and values.size and not _is_number(values.flat[0]):
            raise DataError(
                f"{name}: expected numbers of classes, 0 … C−1, found {str(values.flat[0])!r}; number them: "
                "names, labels = numpy.unique(labels, return_inverse=True)"
            )
    labels = as_tensor(values, name)
    if not labels.is_floating_point():
        return labels
    numbers = labels.to(torch.int64)
    fractions = (numbers != labels).flatten()
    if fractions.any():
        value = labels.flatten()[fractions][0].item()
        raise DataError(
            f"{name}: expected whole numbers of classes, found {value:g}; targets of a regression have none"
        )
    return numbers


def as_bias(values: Any, classes: int) -> Tensor:
    """Return the bias (C,) of a classifier of C classes; raise DataError for another shape or NaN."""
    bias = as_tensor(values, "classifier bias")
    if tuple(bias.shape) != (classes,):
        raise DataError(f"classifier bias: expected shape ({classes},), found {tuple(bias.shape)}")
    if bool(bias.isnan().any()):
        raise DataError(f"classifier bias: entry {int(bias.isnan().nonzero()[0])} is NaN")
    return bias


def double(values: Any, name: str = "logits") -> Tensor:
    """Return an array as a float64 tensor on the CPU, without gradient; `name` is used in error messages."""
    return as_tensor(values, name).detach().cpu().to(torch.float64)


def gram(X: AnyArray) -> AnyArray:
    """Return the Gram matrix K = X̂ X̂ᵀ of the rows of X, scaled to unit length (arXiv 2409.16767, section 3).

    Args:
        X: Rows, (n, d), numpy or torch.

    Returns:
        Matrix (m, m), float64, numpy or torch as X, with gradient for torch, on the CPU for MPS. m is smaller than n
        if rows of zero length were left out, which have no direction.

    Raises:
        DataError: If X is not a finite matrix, or more than half of its rows have zero length.
    """
    rows, _ = unit_rows(to_rows(X))
    K = rows @ rows.T
    return K.numpy() if isinstance(X, np.ndarray) else K  # pyright: ignore[reportReturnType]


def to_rows(X: Array, name: str = "X") -> Tensor:
    """Return X as a finite float64 tensor of rows, (n, d), on its device where that has float64; with gradient.

    Denormal rows have no gradient. Gradients of directions grow as 1/length, and are limited to the largest number of
    the dtype of X.

    Raises:
        DataError: If X is not two-dimensional, has no row or column, or contains NaN, infinity or complex numbers.
    """
    rows = as_tensor(X, name)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] == 0:
        raise DataError(f"{name}: expected one vector per row, shape (n, d), found shape {tuple(rows.shape)}")
    require_finite(rows.detach(), name)
    if not rows.requires_grad:
        return where_float64_is(rows).to(torch.float64)
    lasting, most = has_gradient(rows)[:, None], torch.finfo(rows.dtype).max
    rows = where_float64_is(torch.where(lasting, rows, rows.detach())).to(torch.float64)
    # A view, because the hook must not be on a tensor of the caller.
    rows = rows.view_as(rows)
    rows.register_hook(lambda gradient: None if gradient is None else gradient.clamp(-most, most))
    return rows


def has_gradient(rows: Tensor) -> Tensor:
    """Return which rows of (n, d) are neither zero nor denormal in their dtype, (n,)."""
    return rows.detach().abs().amax(dim=1) >= torch.finfo(rows.dtype).tiny


def where_float64_is(X: Tensor) -> Tensor:
    """Return X, or a copy on the CPU if X is on MPS, which has no float64; with gradient."""
    return X.cpu() if X.device.type == "mps" else X


def require_finite(rows: Tensor, name: str, first_row: int = 0) -> float:
    """Return the largest absolute value of (n, d) rows, 0 for no rows.

    Raises:
        DataError: If rows contain NaN or infinity, with their number and the index of the first one.
    """
    size = largest(rows.detach())
    if math.isfinite(size):
        return size
    bad = ~torch.isfinite(rows).all(dim=1)
    count, first = int(bad.sum()), int(bad.nonzero()[0]) + first_row
    noun = "row holds" if count == 1 else "rows hold"
    raise DataError(f"{name}: {count} {noun} NaN or infinity, the first is row {first}")


def unit_rows(rows: Tensor, name: str = "X") -> tuple[Tensor, Tensor]:
    """Return the rows of (n, d) that have a direction, scaled to unit length (m, d), and their mask (n,).

    Raises:
        DataError: If more than half of the rows have zero length.
    """
    unit, mask = directions(rows)
    require_directions(rows.shape[0] - unit.shape[0], rows.shape[0], name)
    return unit, mask


def directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of `unit_rows` for any number of rows that have a direction."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    measured = lengths.detach()
    if bool(((measured > SHORT) & (measured < LONG)).all()):
        return rows / lengths[:, None], torch.ones_like(measured, dtype=torch.bool)
    # Division by the largest entry prevents underflow of squares of small rows, and overflow for large ones.
    scale = rows.detach().abs().amax(dim=1)
    mask = scale > 0
    if not bool(mask.all()):
        rows, scale = rows[mask], scale[mask]
    scaled = rows / scale[:, None]
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True), mask


def require_directions(left_out: int, total: int, name: str) -> None:
    """Raise DataError if more than half of `total` rows were left out because they have zero length."""
    if 2 * left_out > total:
        raise DataError(f"{name}: {left_out} of {total} rows have zero length; at least half must be non-zero")


def smaller_gram(rows: Tensor) -> Tensor:
    """Return X Xᵀ (n × n) or Xᵀ X (d × d), whichever is smaller: their non-zero eigenvalues are the same."""
    return rows @ rows.T if rows.shape[0] <= rows.shape[1] else second_moment(rows)


def second_moment(rows: Tensor) -> Tensor:
    """Return Xᵀ X of rows (n, d), (d, d), as the sum of the products of centred rows and of their mean.

    The rounding of a plain sum over many similar rows would hide their differences.
    """
    mean = rows.mean(dim=0)
    away = rows - mean
    return away.T @ away + len(rows) * mean.outer(mean)


def spectrum(matrix: Tensor, *, least: float = 0.0) -> Tensor:
    """Return the eigenvalues (k,) of a symmetric matrix (m, m) that are more than the rounding of the largest one.

    Only the lower triangle is read. With gradient.

    Args:
        matrix: The matrix.
        least: Rounding of the entries of the matrix, relative to its largest eigenvalue.
    """
    eigenvalues = without_small(torch.linalg.eigvalsh(matrix), least=least)
    return eigenvalues[eigenvalues > 0]


def without_small(eigenvalues: Tensor, *, least: float = 0.0) -> Tensor:
    """Return eigenvalues (…, m) of m × m matrices, zero up to m · ε or `least` times the largest, with gradient."""
    epsilon, largest = torch.finfo(eigenvalues.dtype).eps, eigenvalues.detach().amax(dim=-1, keepdim=True)
    return eigenvalues.where(eigenvalues > max(eigenvalues.shape[-1] * epsilon, least) * largest, 0.0)


def spectrum_of_repeated(unit: Tensor, counts: Tensor) -> Tensor:
    """Return the eigenvalues of the N × N Gram matrix of unit rows (C, D), row c repeated counts[c] times, over N."""
    shares = counts.to(unit.dtype) / counts.sum()
    return spectrum(smaller_gram(shares.sqrt()[:, None] * unit))


def without_rounding(rows: Tensor, sizes: float | Tensor) -> Tensor:
    """Return rows (n, D), with rows that are not longer than `sizes` (a number, or (n,)) replaced by zero."""
    present = row_lengths(rows.detach()) > sizes
    return rows if bool(present.all()) else torch.where(present[:, None], rows, 0.0)


def centred(rows: Tensor) -> Tensor:
    """Return rows (n, D) minus their mean; entries that are not larger than the rounding of the mean are zero."""
    moved = rows - rows.mean(dim=0)
    sizes = len(rows) * EPSILON * rows.detach().abs().amax(dim=0)
    return torch.where(moved.detach().abs() > sizes, moved, 0.0)


def row_lengths(rows: Tensor) -> Tensor:
    """Return the lengths (n,) of rows (n, D), also if their squares overflow or underflow."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if bool(((lengths > SHORT) & (lengths < LONG)).all()):
        return lengths
    scale = rows.abs().amax(dim=1)
    return torch.linalg.vector_norm(rows / torch.where(scale > 0, scale, 1.0)[:, None], dim=1) * scale


def unit_or_zero(rows: Tensor) -> Tensor:
    """Return rows (C, D) divided by their lengths; rows of length zero do not change."""
    lengths = row_lengths(rows)[:, None]
    return rows / torch.where(lengths > 0, lengths, 1.0)


def largest(values: Tensor) -> float:
    """Return the largest absolute value; NaN if one is NaN, 0 without values."""
    # Several times as fast as abs().max(), and as aminmax().
    return max(float(values.max()), -float(values.min())) if values.numel() else 0.0


def power_of_two(size: float, widest: int = 200) -> float:
    """Return the power of two just above a number, or 1 for zero and for numbers within 2^±widest.

    Dividing by it changes no digit, and leaves fourth powers that neither overflow nor underflow.
    """
    exponent = math.frexp(size)[1]
    # At most 2^±1000, whose reciprocals are finite.
    return 1.0 if abs(exponent) <= widest else 2.0 ** max(-1000, min(exponent, 1000))


def near_one(rows: Tensor) -> Tensor:
    """Return rows divided by a power of two near their largest entry, for results that do not depend on scale."""
    unit = power_of_two(largest(rows.detach()))
    return rows if unit == 1 else rows / unit


def _array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{name}: {np.ma.count_masked(values):,} entries are masked; leave out their rows")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name}: no array can be made of it ({error})") from error
    # Data frames with columns of several types, or of types that can be missing, become arrays of objects.
    are_numbers = array.dtype.kind == "O" and array.size > 0 and all(map(_is_number, array.flat))
    return np.array(array.tolist()) if are_numbers else array


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{name}: expected numbers, found {array.dtype}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        # The package never writes into arrays of a user.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        try:
            return torch.from_numpy(array)
        except TypeError as error:
            raise DataError(f"{name}: torch has no {array.dtype}; pass float64 or int64") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.number)
