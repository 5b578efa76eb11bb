"""Tests of the losses against the float64 analysis, golden values, brute force and finite differences."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ckpt_probe as cp
from ckpt_probe.errors import DataError
from ckpt_probe.metrics import simplex_etf
from ckpt_probe.training import losses
from ckpt_probe.training.losses import cma, hdr_loss, mir_loss

CASES = json.loads((Path(__file__).parents[1] / "metrics" / "golden.json").read_text())["cases"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = [(24, 40, 5), (60, 6, 4), (300, 5, 3), (20, 7, 90), (128, 64, 10)]
"""Shapes (n, D, C): more columns than rows, fewer columns, more rows than D·C, more classes than rows, a usual one."""


def batch(n: int, D: int, C: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(C, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (n,), generator=generator)
    features = weights[labels] + torch.randn(n, D, generator=generator, dtype=torch.float64)
    return features.to(dtype).requires_grad_(), labels, weights.to(dtype).requires_grad_()


def brute_cma(features: Tensor, labels: Tensor, anchors: Tensor, other_labels: Tensor) -> float:
    rows, all_labels = torch.cat([features, anchors]).detach().double(), torch.cat([labels, other_labels])
    entropies = []
    for label in all_labels.unique():
        mine = rows[all_labels == label]
        mine = mine[mine.norm(dim=1) > 0]
        n = len(mine)
        values = torch.linalg.eigvalsh(cp.gram(mine) / n) if n > 1 else torch.ones(1)
        values = values[values > 1e-14]
        entropies.append(float(-(values * values.log()).sum()) / math.log(n) if n > 1 else 0.0)
    return sum(entropies) / len(entropies)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_mir_and_hdr_losses_equal_the_analysis(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    features, labels, weights = batch(*shape, dtype)
    pairs = ((-mir_loss(features, labels, weights), cp.mir), (hdr_loss(features, labels, weights), cp.hdr))
    for loss, analysis in pairs:
        exact = analysis(features.detach().double().numpy(), weights[labels].detach().double().numpy())
        assert loss.dtype == dtype
        assert loss.ndim == 0
        assert loss.item() == pytest.approx(exact, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
def test_losses_have_the_golden_values(case: dict, dtype: torch.dtype) -> None:
    seed, N, D, C = (case[key] for key in ("seed", "N", "D", "C"))
    labels = torch.tensor([i % C if seed % 2 == 0 else (i * i + seed) % C for i in range(N)])
    weights = torch.tensor(
        [[math.sin(seed + 1.7 * c + 0.9 * j * (c + 1)) for j in range(D)] for c in range(C)], dtype=torch.float64
    )
    noise = torch.tensor(
        [[math.cos(0.3 * seed + 1.1 * i + 0.7 * j * (i + 1)) for j in range(D)] for i in range(N)], dtype=torch.float64
    )
    features = (2 * weights[labels] + noise).to(dtype)
    golden = {name: float(value) for name, value in case["sample_level"].items()}
    tolerance = TOLERANCE[dtype]
    assert mir_loss(features, labels, weights.to(dtype)).item() == pytest.approx(-golden["mir"], rel=tolerance)
    assert hdr_loss(features, labels, weights.to(dtype)).item() == pytest.approx(golden["hdr"], rel=tolerance)
    assert float(losses.matrix_entropy(features)) == pytest.approx(golden["entropy_first"], rel=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_cma_equals_the_mean_over_classes_by_brute_force(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    features, labels, _ = batch(*shape, dtype)
    anchors, other_labels, _ = batch(shape[0] // 2 + 1, *shape[1:], dtype, seed=1)
    value = cma(features, labels, anchors, other_labels + 1)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(brute_cma(features, labels, anchors, other_labels + 1), abs=TOLERANCE[dtype])


def test_cma_counts_classes_of_both_sources_and_a_single_row_as_zero() -> None:
    orthogonal = torch.eye(4, dtype=torch.float64)
    anchors = torch.stack([orthogonal[1], orthogonal[0]])
    # Class 7 has e0 and the anchor e1, entropy log 2; class −3 has one row; class 9 has only an anchor.
    value = cma(orthogonal[[0, 2]], torch.tensor([7, -3]), anchors, torch.tensor([7, 9]))
    assert value.item() == pytest.approx(1 / 3, abs=1e-12)


def test_zero_rows_are_left_out() -> None:
    features, labels, weights = batch(30, 8, 4)
    with torch.no_grad():
        features[:5], weights[2] = 0, 0
    for loss, sign, analysis in ((mir_loss, -1, cp.mir), (hdr_loss, 1, cp.hdr)):
        exact = analysis(features.detach().numpy(), weights[labels].detach().numpy())
        assert sign * loss(features, labels, weights).item() == pytest.approx(exact, abs=1e-10)
    # A class with zero rows only still counts as a class of the batch.
    labels[:5] = 9
    assert cma(features, labels, weights, torch.arange(4)).item() == pytest.approx(
        brute_cma(features, labels, weights, torch.arange(4)), abs=1e-10
    )


GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cma": lambda features, labels, weights: cma(
        features, labels, weights, torch.arange(len(weights), device=labels.device)
    ),
    "mir": mir_loss,
    "hdr": hdr_loss,
    "entropy": lambda features, labels, weights: cp.matrix_entropy(torch.cat([features, weights])),
}
NAMED = pytest.mark.parametrize("loss", GRADIENTS.values(), ids=GRADIENTS)


@NAMED
@pytest.mark.parametrize("shape", [(7, 12, 3), (14, 5, 3), (30, 4, 2), (5, 4, 9)])
def test_gradients_agree_with_finite_differences(loss: Callable, shape: tuple[int, int, int]) -> None:
    features, labels, weights = batch(*shape)
    assert torch.autograd.gradcheck(lambda Z, W: loss(Z, labels, W), (features, weights))


@NAMED
def test_gradients_agree_for_low_rank_and_repeated_rows(loss: Callable) -> None:
    features, labels, weights = batch(8, 6, 3)
    generator = torch.Generator().manual_seed(2)
    left_factor, right_factor = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((8, 2), (2, 6))
    )
    # The entropy is differentiable along directions that preserve the rank, along repeated rows, and along all others.
    twice = torch.cat([labels, labels])
    assert torch.autograd.gradcheck(lambda A, B, W: loss(A @ B, labels, W), (left_factor, right_factor, weights))
    assert torch.autograd.gradcheck(lambda Z, W: loss(torch.cat([Z, Z]), twice, W), (features, weights))
    product = (left_factor @ right_factor).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda Z, W: loss(Z, labels, W), (product, weights))
    flat = weights.detach().clone()
    flat[2] = flat[0] + flat[1]
    assert torch.autograd.gradcheck(lambda Z, W: loss(Z, labels, W), (features, flat.requires_grad_()))


def test_the_gradient_is_right_for_a_simplex_of_classifier_rows_and_many_samples() -> None:
    # n > D·C, and classifier rows of rank C − 1: the basis of their span has one dimension too many.
    features, labels, _ = batch(40, 5, 4)
    simplex = simplex_etf(4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda Z, W: mir_loss(Z, labels, W), (features, simplex))


def _zero_rows(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z[: len(Z) * 3 // 4], W[1] = 0, 0


def _all_zero(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z.zero_()


def _repeated(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z[:], W[1] = Z[0].clone(), W[0].clone()


def _collapsed(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z[:] = W[labels]


def _one_class(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    labels[:] = 1


def _tiny(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z.mul_(torch.finfo(Z.dtype).tiny * 100)
    Z[0] /= 1e6


def _huge(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z.mul_(torch.finfo(Z.dtype).max / 100)
    W.mul_(torch.finfo(Z.dtype).max / 100)


def _uneven(Z: Tensor, labels: Tensor, W: Tensor) -> None:
    Z.mul_(torch.logspace(-30, 30, len(Z), dtype=Z.dtype)[:, None])


CORNERS = [_zero_rows, _all_zero, _repeated, _collapsed, _one_class, _tiny, _huge, _uneven]


@pytest.mark.parametrize("loss", [cma, mir_loss, hdr_loss])
@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.__name__[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(32, 48, 4), (100, 5, 3)])
def test_edge_cases_have_finite_values_and_gradients(
    loss: Callable, corner: Callable, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    features, labels, weights = batch(*shape, dtype)
    with torch.no_grad():
        corner(features, labels, weights)
    arguments = (labels, weights) if loss is not cma else (labels, weights, torch.arange(len(weights)))
    value = loss(features, *arguments)
    value.backward()
    assert torch.isfinite(value)
    for tensor in (features, weights):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("loss", [mir_loss, hdr_loss])
@pytest.mark.parametrize("corner", ["one class", "one sample", "no direction", "one direction"])
def test_an_undefined_ratio_has_zero_loss_and_gradient(loss: Callable, corner: str) -> None:
    features, labels, weights = batch(16, 8, 4, torch.float32)
    rows = features[:1] if corner == "one sample" else features
    rows = rows * 0 if corner == "no direction" else rows
    if corner == "one direction":
        rows = torch.arange(1.0, 17)[:, None] * features[0]
    if corner == "one class" or (corner == "one direction" and loss is hdr_loss):
        labels = torch.full_like(labels, 2)
    if corner == "one class" and loss is hdr_loss:
        # This ratio is undefined only if both entropies are zero.
        rows = features[:1].expand(16, -1)
    value = loss(rows, labels[: len(rows)], weights)
    value.backward()
    assert value.item() == 0
    assert weights.grad is not None
    assert not weights.grad.any()
    assert features.grad is not None
    assert not features.grad.any()


def test_a_class_of_one_row_has_no_gradient_in_cma() -> None:
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = cma(features, torch.tensor([0, 1, 2]), features[:0].detach().new_ones(1, 5), torch.tensor([0]))
    value.backward()
    assert features.grad is not None
    assert features.grad[0].any()
    assert not features.grad[1:].any()
    alone = cma(features[1:], torch.tensor([1, 2]), torch.ones(1, 5), torch.tensor([0]))
    assert alone.item() == 0
    assert alone.requires_grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_agree_with_single_precision(half: torch.dtype) -> None:
    features, labels, weights = batch(32, 48, 4, torch.float32)
    plain = [mir_loss(features, labels, weights), cma(features, labels, weights, torch.arange(4))]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [mir_loss(features, labels, weights), cma(features, labels, weights, torch.arange(4))]
        sum(cast).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert [value.item() for value in cast] == [value.item() for value in plain]
    small = features.detach().to(half).requires_grad_()
    value = mir_loss(small, labels, weights)
    value.backward()
    assert value.dtype == torch.float32
    assert small.grad is not None
    assert small.grad.dtype == half
    assert torch.isfinite(small.grad).all()
    assert value.item() == pytest.approx(plain[0].item(), rel=2e-2)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [2.0**-7, 2.0**-12, 2.0**-13])
@pytest.mark.parametrize("loss", [mir_loss, hdr_loss, lambda Z, y, W: cma(Z, y, W, torch.arange(len(W)))])
def test_small_rows_in_half_precision_count_like_large_ones(loss: Callable, scale: float, half: torch.dtype) -> None:
    features, labels, weights = (tensor.detach() for tensor in batch(40, 12, 6, torch.float32))
    # Multiples of an eighth are exact under powers of two, except that small ones become denormal.
    features, weights = ((2 * tensor).round().clamp(-7, 7) / 2 + torch.eye(6, 12)[0] for tensor in (features, weights))
    large, small = (
        [(factor * tensor).to(half).requires_grad_() for tensor in (features, weights)] for factor in (1.0, scale)
    )
    values = [loss(rows, labels, heads) for rows, heads in (large, small)]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-6)
    for value in values:
        value.backward()
    for first, second in zip(large, small, strict=True):
        assert first.grad is not None
        assert second.grad is not None
        expected = (first.grad.double() / scale).clamp(-torch.finfo(half).max, torch.finfo(half).max)
        assert torch.allclose(second.grad.double(), expected, rtol=0.02, atol=1e-4 / scale)


def descend(loss: Callable[[], Tensor], parameters: list[Tensor], steps: int, rate: float) -> tuple[float, float]:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    first = loss().item()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return first, loss().item()


def test_minimising_cma_aligns_the_two_sources_of_a_class() -> None:
    features, labels, _ = batch(40, 16, 5, torch.float32)
    anchors = torch.randn(5, 16, generator=torch.Generator().manual_seed(9)).requires_grad_()
    classes = torch.arange(5)
    assert torch.cosine_similarity(features, anchors[labels]).abs().mean() < 0.4
    first, last = descend(lambda: cma(features, labels, anchors, classes), [features, anchors], 120, 0.05)
    assert first > 0.4
    assert last < 0.02
    # Entropy does not distinguish a vector from its negative.
    assert torch.cosine_similarity(features, anchors[labels]).abs().min() > 0.98


@pytest.mark.parametrize(("loss", "analysis"), [(mir_loss, cp.mir), (hdr_loss, cp.hdr)], ids=["mir", "hdr"])
def test_minimising_the_mir_loss_raises_mir_and_the_hdr_loss_lowers_hdr(loss: Callable, analysis: Callable) -> None:
    features, labels, weights = batch(64, 16, 5, torch.float32)
    before = analysis(features, weights[labels]).item()
    descend(lambda: loss(features, labels, weights), [features, weights], 30, 0.03)
    after = analysis(features, weights[labels]).item()
    assert after > before + 0.1 if loss is mir_loss else after < before / 4


ROWS = torch.ones(4, 3)
NUMBERS = torch.tensor([0, 1, 0, 1])
NOT_FINITE = torch.tensor([[1.0, 1, 1], [1, torch.nan, 1], [1, 1, 1], [torch.inf, 1, 1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ROWS, NUMBERS[:3], ROWS), r"labels: expected one a row, \(4,\), found shape \(3,\)"),
        ((ROWS, NUMBERS.float(), ROWS), "labels: expected whole numbers, found torch.float32"),
        ((ROWS, NUMBERS * 4, ROWS), "labels: row 1 is 4, labels must be between 0 and 3"),
        ((ROWS, NUMBERS - 1, ROWS), "labels: row 0 is -1, labels must be between 0 and 3"),
        ((ROWS[0], NUMBERS, ROWS), r"features: expected one vector per row, shape \(n, d\), found shape \(3,\)"),
        ((ROWS[:0], NUMBERS[:0], ROWS), r"features: expected one vector per row, shape \(n, d\), found shape \(0, 3\)"),
        ((ROWS.long(), NUMBERS, ROWS), "features: expected floating-point numbers, found torch.int64"),
        ((NOT_FINITE, NUMBERS, ROWS), "features: 2 rows hold NaN or infinity, the first is row 1"),
        ((ROWS, NUMBERS, NOT_FINITE), "weights: 2 rows hold NaN or infinity, the first is row 1"),
        ((ROWS + 0j, NUMBERS, ROWS), "features: expected floating-point numbers, found torch.complex64"),
        ((ROWS, NUMBERS, ROWS.long()), "weights: expected floating-point numbers, found torch.int64"),
        ((ROWS, NUMBERS, ROWS + 0j), "weights: expected floating-point numbers, found torch.complex64"),
        ((ROWS, NUMBERS, ROWS[:, :2]), r"weights: expected shape \(classes, 3\), found \(4, 2\)"),
    ],
)
def test_invalid_arguments_are_named(arguments: tuple[Tensor, Tensor, Tensor], message: str) -> None:
    for loss in (mir_loss, hdr_loss):
        with pytest.raises(DataError, match=message) as caught:
            loss(*arguments)
        assert "\n" not in str(caught.value)


def test_invalid_arguments_of_the_other_source_are_named() -> None:
    with pytest.raises(DataError, match=r"features have 3 columns and other_features 2"):
        cma(ROWS, NUMBERS, ROWS[:, :2], NUMBERS)
    with pytest.raises(DataError, match=r"other_labels: expected one a row, \(4,\)"):
        cma(ROWS, NUMBERS, ROWS, NUMBERS[:2])
    with pytest.raises(DataError, match="other_features: 2 rows hold NaN or infinity"):
        cma(ROWS, NUMBERS, NOT_FINITE, NUMBERS)


def test_the_package_exports_the_losses() -> None:
    assert cp.losses is losses
    assert cp.losses.matrix_entropy is cp.matrix_entropy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@NAMED
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cuda_gives_the_same_values_and_gradients(loss: Callable, dtype: torch.dtype) -> None:
    results = []
    for device in ("cpu", "cuda"):
        features, labels, weights = (tensor.to(device) for tensor in batch(64, 32, 6, dtype))
        value = loss(features, labels, weights)
        results.append((value, *torch.autograd.grad(value, [features, weights])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_lists_of_labels_are_accepted_and_features_that_are_no_tensor_are_an_error() -> None:
    labels = NUMBERS.tolist()
    assert losses.mir_loss(ROWS, labels, ROWS) == losses.mir_loss(ROWS, NUMBERS, ROWS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        DataError, match="features: expected floating-point numbers, found a ndarray in place of a tens"
    ):
        losses.hdr_loss(ROWS.numpy(), NUMBERS, ROWS)  # pyright: ignore[reportArgumentType]
