"""Tests of arrays as arguments: the same numbers in every memory layout, no warning, errors that say what to do."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_probe.analysis import analyze_features
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import gram, hdr, matrix_entropy, mir, nc5
from ckpt_probe.metrics.rows import as_labels, as_tensor
from ckpt_probe.moments import Moments

Z = np.random.default_rng(0).normal(size=(40, 6))
W = np.random.default_rng(1).normal(size=(3, 6))
Y = np.arange(40) % 3


def read_only(X: np.ndarray) -> np.ndarray:
    return np.frombuffer(X.tobytes(), dtype=X.dtype).reshape(X.shape)


def other_order(X: np.ndarray) -> np.ndarray:
    return X.astype(X.dtype.newbyteorder())


def backwards(X: np.ndarray) -> np.ndarray:
    return X[::-1].copy()[::-1]


def field(X: np.ndarray) -> np.ndarray:
    """Return a field of a structured array, whose entries are not aligned to multiples of their size."""
    records = np.zeros(X.shape, dtype=[("flag", "i1"), ("value", X.dtype)])
    records["value"] = X
    return records["value"]


LAYOUTS: list[Callable[[np.ndarray], np.ndarray]] = [read_only, other_order, backwards, field, np.asfortranarray]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_memory_layout_gives_the_same_numbers_without_a_warning(
    layout: Callable[[np.ndarray], np.ndarray],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mir(layout(Z), layout(Z[:, ::-1])) == pytest.approx(mir(Z, np.ascontiguousarray(Z[:, ::-1])), rel=1e-12)
        assert matrix_entropy(layout(Z)) == pytest.approx(matrix_entropy(Z), rel=1e-12)
        np.testing.assert_allclose(gram(layout(Z)), gram(Z), rtol=1e-12, atol=1e-12)
        record = analyze_features(layout(Z), layout(Y), layout(W), layout(np.zeros(3)), logits=layout(Z @ W.T))
        expected = analyze_features(Z, Y, W, np.zeros(3), logits=Z @ W.T)
        assert {name: value for name, value in record.items() if isinstance(value, float)} == pytest.approx(
            {name: value for name, value in expected.items() if isinstance(value, float)}, rel=1e-9, abs=1e-12
        )
        moments = Moments()
        moments.update(layout(Z), layout(Y))
        assert moments.counts == {0: 14, 1: 13, 2: 13}


def test_a_memory_map_of_a_read_only_file_is_accepted_without_a_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", Z)
    (tmp_path / "z.npy").chmod(0o444)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert matrix_entropy(np.load(tmp_path / "z.npy", mmap_mode="r")) == matrix_entropy(Z)


def test_a_tensor_shares_the_memory_of_its_array() -> None:
    assert as_tensor(Z).data_ptr() == Z.ctypes.data
    array = read_only(Z)
    assert as_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda C: mir(C, Z), "X"),
        (lambda C: hdr(torch.from_numpy(Z), torch.from_numpy(C)), "Y"),
        (lambda C: gram(C), "X"),
        (lambda C: analyze_features(C, Y, W), "features"),
        (lambda C: analyze_features(Z, Y, C[:3]), "classifier weights"),
        (lambda C: analyze_features(Z, Y, W, C[0, :3]), "classifier bias"),
        (lambda C: analyze_features(Z, Y, W, logits=C[:, :3]), "logits"),
        (lambda C: Moments().update(torch.from_numpy(C), Y), "features"),
    ],
)
def test_complex_numbers_are_refused(function: Callable[[np.ndarray], object], name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: expected real numbers, found complex128; pass their real parts"):
        function(Z + 1j)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda z: torch.from_numpy(z).to_sparse(), "expected the numbers of a dense tensor, found a sparse tensor"),
        (lambda z: torch.from_numpy(z).to("meta"), "expected the numbers of a dense tensor, found a tensor without"),
        (
            lambda z: torch.nested.nested_tensor([*torch.from_numpy(z)]),
            "expected the numbers of a dense tensor, found a nested tensor",
        ),
        (lambda z: np.array([["1.5"] * z.shape[1]] * len(z), dtype=object), "expected numbers, found object"),
        (lambda z: np.ma.masked_less(z, 0), r"\d+ entries are masked; leave out their rows"),
        (lambda z: [*z[1:].tolist(), [0.0]], "no array can be made of it"),
    ],
    ids=["sparse", "meta", "nested", "texts", "masked", "rows of different lengths"],
)
def test_arrays_without_all_numbers_are_refused(change: Callable[[np.ndarray], object], kind: str) -> None:
    for function, name in ((lambda z: analyze_features(z, Y, W), "features"), (lambda z: mir(z, Z), "X")):
        with pytest.raises(DataError, match=f"^{name}: {kind}"):
            function(change(Z))


def test_lists_and_types_of_eight_bits_are_accepted() -> None:
    expected = analyze_features(Z, Y, W)["class.mir"]
    assert analyze_features(Z.tolist(), list(Y), W.tolist())["class.mir"] == pytest.approx(expected)
    small = torch.from_numpy(Z).to(torch.float8_e4m3fn)
    assert analyze_features(small, Y, W) == analyze_features(small.to(torch.float64), Y, W)


def test_quantised_tensors_and_objects_that_are_numbers_are_accepted() -> None:
    quantised = torch.quantize_per_tensor(torch.from_numpy(Z).float(), 0.1, 0, torch.qint8)
    assert mir(quantised, quantised) == pytest.approx(float(mir(quantised.dequantize(), quantised.dequantize())))
    expected = analyze_features(Z, Y, W)
    assert analyze_features(Z.astype(object), np.array([*map(int, Y)], dtype=object), W.astype(object)) == expected


@pytest.mark.parametrize(
    "form",
    [list, lambda mean: mean[::-1].copy()[::-1], lambda mean: mean.astype(">f8")],
    ids=["list", "reversed", "big"],
)
def test_an_outside_mean_of_any_form_keeps_its_digits(form: Callable[[np.ndarray], object]) -> None:
    mean = Z[5]
    expected = np.mean([abs(row @ mean) / np.linalg.norm(row) / np.linalg.norm(mean) for row in Z[:3]])
    assert nc5(Z[:3], form(mean)) == pytest.approx(expected, rel=1e-12)


def test_a_classifier_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"^classifier weights: expected shape \(classes, 6\), found \(6, 3\)$"):
        analyze_features(Z, Y, W.T)
    with pytest.raises(DataError, match=r"^classifier weights: expected shape \(classes, features\), found "):
        analyze_features(Z, Y, W[0])
    with pytest.raises(DataError, match=r"^classifier bias: expected shape \(3,\), found \(4,\)$"):
        analyze_features(Z, Y, W, np.zeros(len(W) + 1))


@pytest.mark.parametrize("labels", [["cat", "dog"] * 20, np.array(["cat", "dog"] * 20, dtype=object), [b"cat"] * 40])
def test_labels_of_text_are_refused_with_the_way_to_number_them(labels: object) -> None:
    message = r"^labels: expected numbers of classes, 0 … C−1, found .*cat.*; number them: .*return_inverse=True"
    with pytest.raises(DataError, match=message):
        analyze_features(Z, labels, W)
    with pytest.raises(DataError, match=message):
        Moments().update(Z, labels)
    _, numbers = np.unique(labels, return_inverse=True)
    assert as_labels(numbers).dtype == torch.int64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([None, 1.0]), "found object"),
        (np.zeros(2, dtype=[("a", "f8")]), "found \\[\\('a', '<f8'\\)\\]"),
        ([[1.0], [1.0, 2.0]], "no array can be made of it"),
        (np.zeros(2, dtype="M8[s]"), "found datetime64"),
    ],
)
def test_values_without_a_numeric_dtype_are_refused(values: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^mine: .*{message}"):
        as_tensor(values, "mine")


@pytest.mark.parametrize("values", [[0.0, 0.7], [float("nan"), 1.0], torch.tensor([[2.5], [1.0]])])
def test_labels_that_are_not_integers_are_refused(values: object) -> None:
    with pytest.raises(DataError, match=r"whole numbers of classes, found (0.7|nan|2.5)"):
        as_labels(values)


def test_floating_point_labels_of_integer_value_become_integers() -> None:
    labels = as_labels(np.array([0.0, 2.0, -100.0], dtype=np.float32))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, -100]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_unsigned_numbers_are_computed_with_like_signed_ones(kind: type) -> None:
    rows = np.random.default_rng(0).integers(0, 60000, (12, 5))
    assert matrix_entropy(rows.astype(kind)) == matrix_entropy(rows)
    assert float(as_tensor(np.array([2**64 - 1], np.uint64))[0]) == 2.0**64


def test_a_list_of_tensors_with_gradient_is_an_error_of_one_line() -> None:
    with pytest.raises(DataError, match="X: no array can be made of it"):
        matrix_entropy([torch.ones(3, requires_grad=True)] * 2)  # pyright: ignore[reportArgumentType]
