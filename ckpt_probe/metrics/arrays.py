"""Conversion of arrays of users to tensors, with one-line errors for arrays that cannot be converted."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError

NUMBERS = "biufc"
"""Kinds of numpy dtypes that are numbers: boolean, signed, unsigned, floating, complex."""


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
